"""The loaders of a run: transform, batches of each split, unreadable images."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial

import torch

from alr_fast.data.broken import BrokenSamples
from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import ArrayImages, FeatureRows
from alr_fast.data.loaders.base import Loader
from alr_fast.data.loaders.choose import LoaderChoice, choose_loader, make_loader
from alr_fast.data.loaders.memory import Decoded, decode_all
from alr_fast.data.loaders.sizes import median_side
from alr_fast.data.loaders.transform import Transform, for_evaluation
from alr_fast.data.sampler import Sampler, SequentialSampler, ShuffledSampler
from alr_fast.errors import UserError, naming_options
from alr_fast.training.config.schema import Config, DataConfig, ModelConfig
from alr_fast.training.distributed import World
from alr_fast.training.models import default_size
from alr_fast.training.run_data import RunData, num_workers

# Options that change images, and have no effect on features.
_IMAGE_OPTIONS = ("image_size", "resize", "crop", "crop_padding", "flip", "randaugment_ops",
                  "mean", "std")  # fmt: skip
_DEFAULTS = asdict(DataConfig())
BALANCE = {"none": None, "sqrt": 0.5, "classes": 0.0}  # power of the sizes of classes
TESTS = ("test", "second_test")  # names of the results of each test split
LARGEST_TEST_BATCH = 512
TEST_BATCH_PIXELS = 1 << 23  # 167 images of 224 x 224: batches pass through shared memory


def make_transform(
    config: DataConfig,
    split: Split,
    model: str = ModelConfig.name,
    *,
    log: Callable[[str], None] = lambda text: None,
) -> Transform:
    """Transform of training images; of features one without any effect.

    Args:
        config: Its options.
        split: Training samples.
        model: Name of the model, which decides about the size if none is given.
        log: Takes a line of text about options without effect.

    Raises:
        UserError: The options do not fit, or no image can be read to take the size from.
    """
    if isinstance(split.images, FeatureRows):
        changed = [name for name in _IMAGE_OPTIONS if getattr(config, name) != _DEFAULTS[name]]
        if changed:
            log(f"of features, these options have no effect: {', '.join(changed)}")
        return Transform(size=1)
    ops = config.randaugment_ops
    if isinstance(split.images, ArrayImages):
        size = resize = split.images.array.shape[-1]
        problem = "images that come as arrays are only padded and cropped"
        if config.crop not in ("center", "pad"):
            raise UserError(f"--data.crop {config.crop}: {problem}; pass --data.crop pad")
        if ops:
            raise UserError(f"--data.randaugment_ops {ops}: {problem}; leave it out")
    else:
        size = config.image_size or _chosen_size(split, model, log)
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
        randaugment=(ops, config.randaugment_magnitude) if ops else None,
        mean=tuple(config.mean or (0.5,)),
        std=tuple(config.std or (0.5,)),
    )


def _chosen_size(split: Split, model: str, log: Callable[[str], None]) -> int:
    side, sample = median_side(split)
    size = default_size(model, side)
    why = "" if size == side else f", which suits {model}"
    log(
        f"images: {side:,} pixels on the shorter side (median of {sample}): training at {size} x "
        f"{size}{why}; --data.image_size changes it"
    )
    return size


def with_image_size(config: Config, loader: Loader) -> Config:
    """The configuration with the size that the images of a loader have, if they are files."""
    split = loader.split
    if config.data.image_size is not None or isinstance(split.images, FeatureRows | ArrayImages):
        return config
    return config.with_value("data.image_size", loader.transform.size)


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run, the same for all methods.

    Attributes:
        train: Training batches.
        tests: Batches of each test split; empty without test samples.
        validation: Batches of the training samples held out for validation; None without any.
        choice: Kind of the training loader.
        decoded: Images of the training loader if it decoded them into memory.
    """

    train: Loader[ShuffledSampler]
    tests: tuple[Loader, ...]
    validation: Loader | None
    choice: LoaderChoice
    decoded: Decoded | None = None

    @property
    def for_evaluation(self) -> dict[str, Loader]:
        """The loaders of test and validation samples, by the names of their results."""
        named = dict(zip(TESTS, self.tests, strict=False))
        return named if self.validation is None else {**named, "validation": self.validation}

    def in_order(self) -> Loader:
        """A new loader of the training samples of this process: each once, not augmented."""
        train, transform = self.train, for_evaluation(self.train.transform)
        return make_loader(
            self.choice,
            train.split,
            train.sampler.in_order(evaluation_batch_size(transform.size)),
            transform,
            decoded=self.decoded,
            device=train.device,
            dtype=train.dtype,
            workers=train.workers,
        )

    def share_broken(self, world: World) -> None:
        """Merges the lists of unreadable images of all processes.

        Raises:
            SharedError: Too many images are unreadable.
        """
        loaders = (self.train, *self.tests, self.validation)
        lists = [loader.broken for loader in loaders if loader is not None]
        parts = world.gather([broken.reasons for broken in lists])

        def merge() -> None:
            for broken, *reasons in zip(lists, *parts, strict=True):
                for part in reasons:
                    broken.merge(part)

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
    """Makes the loaders of a run; decodes the images of this process if they are kept in memory.

    Args:
        config: Resolved configuration.
        data: Samples and labels to train on.
        transform: Transform of training images.
        world: The processes of the run; batches go to its device.
        log: Takes a line of text.
        track: ``track(iterable, description=str, total=int)`` shows progress.

    Raises:
        UserError: The loader does not support this data, too many images are unreadable, or batch
            or samples cannot be divided among the processes.
    """
    processes = world.size
    if len(data.train) < 2 * processes:
        raise UserError(
            f"{len(data.train):,} training samples are too few for {processes} processes; start "
            "fewer"
        )
    if config.optim.batch_size % processes:
        raise UserError(
            f"--optim.batch_size {config.optim.batch_size}: cannot be shared equally among "
            f"{processes} processes; pass a multiple of {processes}"
        )
    sampler = ShuffledSampler(
        len(data.train),
        config.optim.batch_size // processes,
        seed=config.seed,
        rank=world.rank,
        world_size=processes,
        labels=data.train.index.labels,
        balance=BALANCE[config.data.balance],
        epoch_samples=config.data.epoch_samples,
        per_class=_samples_per_class(config.data.epoch_samples, data.train, processes),
    )
    maker = _LoaderMaker(config, world, log, track)
    train = maker.make(data.train, sampler, transform, config.data.loader, "training")
    transform = for_evaluation(transform)
    tests = tuple(maker.evaluation(test, transform, "test") for test in data.tests)
    validation = None
    if data.validation is not None:
        validation = maker.evaluation(data.validation, transform, "validation")
    log(f"loader: {train.choice.name} ({train.choice.why})")
    return Loaders(train.loader, tests, validation, train.choice, train.decoded)


def _samples_per_class(samples: int | None, split: Split, processes: int) -> int | None:
    classes = split.index.num_classes
    if samples is None:
        return None
    if samples // classes < processes:
        raise UserError(
            f"--data.epoch_samples {samples}: below the number of classes, {classes}"
            + (f", times that of processes, {processes}" if processes > 1 else "")
            + "; raise it"
        )
    return samples // classes


@dataclass(frozen=True)
class _MadeLoader:
    loader: Loader
    choice: LoaderChoice
    decoded: Decoded | None


@dataclass(frozen=True)
class _LoaderMaker:
    """Makes the loader of one split; attributes as the arguments of `make_loaders`."""

    config: Config
    world: World
    log: Callable[[str], None]
    track: Callable[..., Iterable]

    def evaluation(self, split: Split, transform: Transform, name: str) -> Loader:
        """Batches of a test or validation split, dealt out to the processes."""
        sampler = SequentialSampler(
            len(split),
            evaluation_batch_size(transform.size),
            seed=self.config.seed,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        wanted = self.config.data.loader
        if wanted == "memory":  # required for the training split only
            wanted = "auto"
        return self.make(split, sampler, transform, wanted, name).loader

    def make(
        self, split: Split, sampler: Sampler, transform: Transform, wanted: str, name: str
    ) -> _MadeLoader:
        """The wanted loader; images of files are decoded first if it keeps them in memory."""
        options, world = self.config.data, self.world
        with naming_options(loader="data.loader"):
            choice = choose_loader(wanted, split, transform, options.cache_mb)
        workers = num_workers(options, world.local_size)
        broken = BrokenSamples(split, options.max_broken, self.log, alone=world.size == 1)
        decoded, rows, text = None, sampler.rows, f"Decoding {name} images"
        if choice.name == "memory" and split.values is None:
            decoded = decode_all(
                split,
                transform.size,
                rows=rows,
                resize=transform.resize,
                workers=workers,
                broken=broken,
                progress=partial(self.track, description=text, total=len(rows)),
            )
        loader = make_loader(
            choice,
            split,
            sampler,
            transform,
            decoded=decoded,
            device=world.device,
            dtype=getattr(torch, self.config.precision),
            workers=workers,
            broken=broken,
        )
        return _MadeLoader(loader, choice, decoded)


def evaluation_batch_size(size: int) -> int:
    """Images of ``size`` x ``size`` pixels in a batch for evaluation."""
    return max(min(LARGEST_TEST_BATCH, TEST_BATCH_PIXELS // size**2), 1)
