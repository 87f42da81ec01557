"""From a configuration to the batches of a run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.broken import default_exclusion_file, read_exclusions
from alr_fast.data.datasets import Dataset, Split, open_dataset
from alr_fast.data.images import FileImages
from alr_fast.data.index import SampleIndex, balanced_rows
from alr_fast.data.label_table import is_label_table, read_labels, read_left_out
from alr_fast.data.layouts.packed import PackedImages
from alr_fast.data.loaders.memory import decode_all
from alr_fast.errors import UserError, naming_options
from alr_fast.noise import InjectedNoise, inject, needs_features, read_matrix
from alr_fast.training.config.schema import DataConfig, NoiseConfig
from alr_fast.utils.machine import usable_cores

MOST_DEFAULT_WORKERS = 16
_HOLD_OUT = 0x686F6C64  # a stream of random numbers of its own
FEATURE_SIZE = 32  # side of the images that instance-dependent noise looks at


@dataclass(frozen=True)
class RunData:
    """What a run trains and tests on.

    Attributes:
        dataset: Where it was found.
        train: Training split, with the labels as the data set gives them.
        test: Test split.
        second_test: Second test split, or None.
        validation: Training samples that `hold_out` has put aside, with their given labels, or
            None.
        excluded: Ids of training samples that `leave_out` leaves out, int64.
    """

    dataset: Dataset
    train: Split
    test: Split
    second_test: Split | None
    excluded: NDArray[np.int64]
    validation: Split | None = None

    @property
    def tests(self) -> tuple[Split, ...]:
        """The test splits that there are."""
        return (self.test,) if self.second_test is None else (self.test, self.second_test)


def load_data(config: DataConfig, root: str | None, *, log: Callable[[str], None]) -> RunData:
    """Finds the data set of a configuration and lists its splits; opens no image.

    Args:
        config: Which data set, and how much of it.
        root: Folder with the data as it was downloaded; None for digits.
        log: Takes a line of text about what was found.

    Raises:
        UserError: The data cannot be used; the message names the input and the way out.
    """
    dataset = open_dataset(config.name, root)
    if root is not None:
        log(f"{dataset.layout.name}: {dataset.found.what}")
    train = dataset.split(config.train_split)
    k = train.index.num_classes
    # By the data set's own labels: with others the same images are trained on.
    limited = balanced_rows(train.index.labels, k, config.limit, option="data.limit")
    if config.label_file is not None:
        index = _with_labels_of_file(config, train.index, log)
        train = replace(train, index=index)
    excluded = train.index.sample_ids[_excluded_rows(train, config, config.exclude, log)]
    # A file names samples of the training split; verify writes a list for each.
    by_hand = config.exclude not in ("auto", "none")
    test = dataset.split(config.test_split)
    rows = _excluded_rows(test, config, "none" if by_hand else config.exclude, log)
    test = _without(test, rows)
    if train.index.class_names != test.index.class_names:
        raise UserError(
            f"splits {config.train_split} and {config.test_split} of {root} have other classes; "
            "pass --data.train_split and --data.test_split of the same classes"
        )
    train = train if len(limited) == len(train) else train.take(limited)
    rows = balanced_rows(test.index.labels, k, config.test_limit, option="data.test_limit")
    test = test if len(rows) == len(test) else test.take(rows)
    second = None
    if config.ilsvrc12 is not None:
        second = _ilsvrc12(dataset, config.ilsvrc12, test.index)
    return RunData(dataset, train, test, second, excluded)


def _ilsvrc12(dataset: Dataset, root: str, test: SampleIndex) -> Split:
    from alr_fast.data.layouts.webvision import read_ilsvrc12, wnids

    if not dataset.layout.name.startswith("webvision"):
        raise UserError(
            f"--data.ilsvrc12 {root}: is a second test set for webvision and webvision-mini; leave "
            f"it out with {dataset.layout.name}"
        )
    names = test.class_names
    found, listing = read_ilsvrc12(Path(root), wnids(dataset.found.root)[: len(names)], names)
    return Split(listing.index, FileImages(found.root, listing.index.paths))


def _with_labels_of_file(
    config: DataConfig, index: SampleIndex, log: Callable[[str], None]
) -> SampleIndex:
    file = config.label_file
    if not Path(file).is_file():
        raise UserError(f"--data.label_file {file}: no such file")
    if not is_label_table(file):
        log(f"labels: those of {file}")
        return index.with_noisy_labels(_labels_of_file(config, index))
    labels, listed = read_labels(file, index, config.label_key, option="data.label_file")
    differing = int((labels != index.labels).sum())
    log(
        f"labels: those of {file} for {listed:,} of {len(index):,} samples, {differing:,} other "
        "than the data set's"
    )
    # Corrections, not noise: what is true is known no better than before.
    return replace(index, labels=labels)


def _labels_of_file(config: DataConfig, index: SampleIndex) -> np.ndarray:
    if config.label_file.endswith(".npz"):
        if config.label_key is not None:
            raise UserError(
                f"--data.label_key {config.label_key}: is for the labels of CIFAR-N; leave it out "
                f"with {config.label_file}"
            )
        from alr_fast.noise import load_labels

        return load_labels(config.label_file, index)
    from alr_fast.data.cifar_n import read_cifar_n

    if config.label_key is None:
        raise UserError(
            f"--data.label_file {config.label_file}: holds several sets of labels; name one with "
            "--data.label_key (aggre, worse, random1, random2, random3, noisy)"
        )
    return read_cifar_n(Path(config.label_file), config.label_key, index.labels)


def _excluded_rows(
    split: Split, config: DataConfig, exclude: str, log: Callable[[str], None]
) -> NDArray[np.int64]:
    excluded = np.empty(0, dtype=np.int64)
    if isinstance(split.images, PackedImages):
        excluded = split.images.absent()
        if len(excluded):
            log(f"{len(excluded):,} samples were left out when the data set was packed")
    listed = None
    path = Path(exclude)
    if exclude == "auto":
        # Images in memory come from no files that could be broken.
        path = None if split.images.array is not None else default_exclusion_file(split)
    if exclude != "none" and path is not None and (exclude != "auto" or path.exists()):
        if is_label_table(exclude):
            listed = read_left_out(path, split.index, config.exclude_above)
        if listed is None:
            listed = read_exclusions(path, split.index)
        if len(listed):
            log(f"{len(listed):,} samples are left out, as {path} says")
        excluded = np.union1d(excluded, listed)
    return excluded


def _without(split: Split, rows: NDArray[np.int64]) -> Split:
    return split.take(np.setdiff1d(np.arange(len(split)), rows)) if len(rows) else split


def leave_out(data: RunData) -> RunData:
    """The same data without the excluded training samples; the ids of the others stay."""
    rows = np.flatnonzero(np.isin(data.train.index.sample_ids, data.excluded))
    return replace(data, train=_without(data.train, rows))


def hold_out(data: RunData, share: float, *, seed: int) -> RunData:
    """The same data with a random part of the training samples put aside for validation.

    The part has its given labels, wrong ones included: what can be measured where nobody knows
    better. On balanced noise the order of two nets on it is mostly that on clean labels.

    Args:
        data: What is trained on, with noise and without excluded samples.
        share: How much of it, 0 to 1.
        seed: Seed of the choice.

    Raises:
        UserError: Nothing would be left on one of the two sides.
    """
    if share == 0:
        return data
    size = int(share * len(data.train))
    if not 0 < size < len(data.train):
        raise UserError(
            f"--data.validation {share}: puts {size} of {len(data.train):,} training samples "
            "aside; pass a share that leaves some on both sides"
        )
    order = np.random.default_rng([seed, _HOLD_OUT]).permutation(len(data.train))
    aside = np.sort(order[:size])
    return replace(data, train=_without(data.train, aside), validation=data.train.take(aside))


def _workers(config: DataConfig, processes: int = 1) -> int:
    if config.workers is not None:
        return config.workers
    return min(max(usable_cores() // processes, 1), MOST_DEFAULT_WORKERS)


def inject_noise(
    noise: NoiseConfig, config: DataConfig, data: RunData, track: Callable[..., Iterable]
) -> InjectedNoise:
    """The labels to train on, as `alr_fast.noise.inject` gives them.

    Args:
        noise: Which noise.
        config: How images are read, where the noise looks at them.
        data: With the labels as the data set gives them.
        track: See `make_loaders`.
    """
    features = None
    if needs_features(noise.kind):
        features = noise_features(config, data.train, track)
    index = data.train.index
    with naming_options(**{name: f"noise.{name}" for name in ("kind", "rate", "seed", "matrix")}):
        return inject(
            index.labels,
            num_classes=index.num_classes,
            kind=noise.kind,
            rate=noise.rate,
            seed=noise.seed,
            class_names=index.class_names,
            features=features,
            matrix=None if noise.matrix is None else read_matrix(noise.matrix),
        )


def noise_features(config: DataConfig, train: Split, track: Callable[..., Iterable]) -> np.ndarray:
    """What instance-dependent noise looks at: pixels, uint8 [N, C, S, S]."""
    if train.images.array is not None:
        return train.images.array
    progress = partial(track, description="Reading images for the noise", total=len(train))
    return decode_all(train, FEATURE_SIZE, workers=_workers(config), progress=progress).array


def with_labels(data: RunData, labels: np.ndarray) -> RunData:
    """The same data, trained on other labels; the old ones are the clean ones if none are."""
    index = data.train.index.with_noisy_labels(labels)
    return replace(data, train=replace(data.train, index=index))
