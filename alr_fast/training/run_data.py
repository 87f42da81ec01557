"""The samples and labels of a run: data set, label noise, exclusions, held-out samples."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.broken import find_exclusions, read_exclusions, verify_command
from alr_fast.data.datasets import Dataset, Split, open_dataset
from alr_fast.data.images.sources import FeatureRows, FileImages, ShardImages
from alr_fast.data.index import SampleIndex, balanced_rows
from alr_fast.data.label_files.cifar_n import is_torch_file, read_cifar_n
from alr_fast.data.label_files.label_table import is_label_table, read_labels, read_left_out
from alr_fast.data.layouts.base import NoSplit
from alr_fast.data.layouts.webvision import read_ilsvrc12, wnids
from alr_fast.data.loaders.memory import decode_all
from alr_fast.data.tables.npz import is_npz
from alr_fast.errors import UserError, naming_options
from alr_fast.noise import (
    InjectedNoise,
    class_numbers_line,
    inject,
    load_labels,
    needs_features,
    read_matrix,
)
from alr_fast.training.config.schema import (
    FOLDER_RECIPE,
    Config,
    DataConfig,
    NoiseConfig,
    recipe_names,
)
from alr_fast.training.distributed import World
from alr_fast.utils.machine import usable_cores
from alr_fast.utils.random import stream
from alr_fast.utils.text import percent, some_names

MOST_DEFAULT_WORKERS = 16
FEATURE_SIZE = 32  # side of the images that instance-dependent noise is computed from


@dataclass(frozen=True)
class RunData:
    """Samples for training and testing.

    Attributes:
        dataset: The data set.
        train: Training split.
        tests: Up to two test splits; none if the data set has no test samples.
        excluded: Ids of the training samples that `leave_out` removes, int64.
        validation: Training samples that `hold_out` has removed from ``train``, with their given
            labels; None without any.
    """

    dataset: Dataset
    train: Split
    tests: tuple[Split, ...]
    excluded: NDArray[np.int64]
    validation: Split | None = None

    @property
    def test(self) -> Split | None:
        """The first test split, None without any."""
        return self.tests[0] if self.tests else None


def prepare_data(
    config: Config,
    world: World,
    *,
    log: Callable[[str], None],
    track: Callable[..., Iterable],
) -> tuple[RunData, InjectedNoise]:
    """The data of a run with the labels to train on, and their noise. All processes call this.

    Args:
        config: Resolved configuration.
        world: The processes.
        log: Takes a line of text about the data.
        track: ``track(iterable, description=str, total=int)`` shows progress.

    Raises:
        SharedError: The data cannot be used as configured.
    """
    data = world.main_first(lambda: load_data(config.data, config.data_root, log=log))
    layout = data.dataset.layout.name
    if config.recipe == FOLDER_RECIPE != layout and layout in recipe_names():
        log(f"recipe {layout} has a schedule for this data set: --recipe {layout}")
    noise = world.from_main(lambda: inject_noise(config.noise, config.data, data, track))
    if noise.kind != "none":
        numbers = class_numbers_line(noise.kind, data.train.index.class_names)
        if numbers is not None:
            log(numbers)
        data = with_labels(data, noise.labels)
    data = world.on_all_ranks(lambda: with_marks(data, config.data.marks, log))
    # After the noise, so that excluding a sample does not change the labels of others.
    kept = world.on_all_ranks(lambda: leave_out(data))
    gone = np.setdiff1d(data.train.index.labels, kept.train.index.labels)
    if len(gone):
        names = [data.train.index.class_names[k] for k in gone.tolist()]
        log(f"left out: all samples of the classes {some_names(names)}")
    share, seed = config.data.validation, config.seed
    return world.on_all_ranks(lambda: hold_out(kept, share, seed=seed)), noise


# Errors about what is read name these options, when the data set is found and when it is listed.
_READING = {"column": "data.column", "columns": "data.columns", "images": "data.images"}


def find_dataset(config: DataConfig, root: str | None) -> Dataset:
    """The data set of a configuration in a folder or file; lists no samples yet.

    Raises:
        UserError: It is not there.
    """
    with naming_options(name="data", root="data-root", **_READING):
        return open_dataset(config.name, root, **config.reading)


@naming_options(**_READING)
def load_data(config: DataConfig, root: str | None, *, log: Callable[[str], None]) -> RunData:
    """Finds a data set and lists its splits; opens no image.

    Args:
        config: The data set, and how much of it to use.
        root: Folder with the data as downloaded; None for digits.
        log: Takes a line of text about the data.

    Raises:
        UserError: The data cannot be used; the message names the input and how to fix it.
    """
    dataset = find_dataset(config, root)
    if root is not None:
        log(f"{dataset.layout.name}: {dataset.found.what}")
    train = dataset.split(config.train_split)
    test, why = _test_split(dataset, config)
    for remark in dict.fromkeys((*train.remarks, *(() if test is None else test.remarks))):
        log(remark)
    k = train.index.num_classes
    # By the labels of the data set: another label file does not change the choice of images.
    with naming_options(limit="data.limit"):
        limited = balanced_rows(train.index.labels, k, config.limit)
    if config.label_file is not None:
        index = _with_labels_of_file(config.label_file, config.label_key, train.index, log)
        train = replace(train, index=index)
    excluded = train.index.sample_ids[_excluded_rows(train, config, config.exclude, log)]
    if test is not None:
        # A file of the user lists training samples; `verify` writes a list for each split.
        exclude = config.exclude if config.exclude == "auto" else "none"
        _check_same_kind(train, test, config, root)
        left_out = _excluded_rows(test, config, exclude, log)
        if len(left_out) == len(test):
            test, why = None, f"all {len(left_out):,} of them are left out"
        else:
            test = _without(test, left_out)
    train = train if len(limited) == len(train) else train.take(limited)
    if test is not None:
        with naming_options(limit="data.test_limit"):
            rows = balanced_rows(test.index.labels, k, config.test_limit)
        test = test if len(rows) == len(test) else test.take(rows)
    tests: tuple[Split, ...] = () if test is None else (test,)
    if config.ilsvrc12 is not None:
        tests += (_ilsvrc12(dataset, config.ilsvrc12, train.index.class_names),)
    if test is None:
        log(_without_tests(config, why))
    return RunData(dataset, train, tests, excluded)


def _test_split(dataset: Dataset, config: DataConfig) -> tuple[Split | None, str]:
    """The test split, or None and the reason.

    Only the split that nobody asked for may be missing.
    """
    try:
        return dataset.split(config.test_split), ""
    except NoSplit as error:
        if config.test_split != DataConfig.test_split:
            raise
        if config.test_limit is not None:
            raise UserError(
                f"--data.test_limit {config.test_limit}: {error}; leave it out"
            ) from error
        return None, str(error)


def _without_tests(config: DataConfig, why: str) -> str:
    """The line of a run without test samples of the data set."""
    if config.ilsvrc12 is not None:
        what = "accuracy is that on the images of --data.ilsvrc12"
    elif config.validation:
        share = percent(config.validation)
        what = f"accuracy is that on the {share} of the training samples that are held out"
    else:
        remedy = "--data.validation 0.1 holds some of the training samples out"
        what = f"accuracy is not measured ({remedy})"
    return f"no test samples: {what}; {why}"


def _check_same_kind(train: Split, test: Split, config: DataConfig, root: str | None) -> None:
    """Raises `UserError` if training and test samples have other classes or other features."""
    if train.index.class_names != test.index.class_names:
        raise UserError(
            f"splits {config.train_split} and {config.test_split} of {root} have other classes; "
            "pass --data.train_split and --data.test_split of the same classes"
        )
    sizes = [split.images.features.shape[1] for split in (train, test)
             if isinstance(split.images, FeatureRows)]  # fmt: skip
    if len(set(sizes)) > 1:
        raise UserError(
            f"{root}: training samples have {sizes[0]} features, test samples {sizes[1]}; store "
            "the same features of both"
        )


def _ilsvrc12(dataset: Dataset, root: str, names: tuple[str, ...]) -> Split:
    if not dataset.layout.name.startswith("webvision"):
        raise UserError(
            f"--data.ilsvrc12 {root}: is a second test set for webvision and webvision-mini; leave "
            f"it out with {dataset.layout.name}"
        )
    found, listing = read_ilsvrc12(Path(root), wnids(dataset.found.root)[: len(names)], names)
    return Split(listing.index, FileImages(found.root, listing.index.paths), listing.remarks)


def _with_labels_of_file(
    file: str, key: str | None, index: SampleIndex, log: Callable[[str], None]
) -> SampleIndex:
    if not Path(file).is_file():
        raise UserError(f"--data.label_file {file}: no such file")
    if is_label_table(file):
        with naming_options(table="data.label_file"):
            read = read_labels(file, index, key)
        differing = int((read.labels != index.labels).sum())
        log(
            f"labels: from {file} for {read.listed:,} of {len(index):,} samples; {differing:,} "
            "differ from those of the data set"
        )
        for remark in read.remarks:
            log(f"labels: {remark}")
        # These are corrections, not noise: the clean labels stay unknown.
        return replace(index, labels=read.labels)
    log(f"labels: from {file}")
    if not is_npz(Path(file)) and not file.endswith(".npz"):
        if not is_torch_file(Path(file)):
            raise UserError(
                f"--data.label_file {file}: is no table (CSV, JSON lines, Parquet), no array of "
                "labels (.npy, .npz) and no file of CIFAR-N (.pt); pass one of them"
            )
        if key is None:
            raise UserError(
                f"--data.label_file {file}: holds several sets of labels; name one with "
                "--data.label_key (aggre, worse, random1, random2, random3, noisy)"
            )
        return index.with_noisy_labels(read_cifar_n(Path(file), key, index.labels))
    if key is not None:
        raise UserError(
            f"--data.label_key {key}: is for the labels of CIFAR-N; leave it out with {file}"
        )
    return index.with_noisy_labels(load_labels(file, index, lambda text: log(f"labels: {text}")))


def _excluded_rows(
    split: Split, config: DataConfig, exclude: str, log: Callable[[str], None]
) -> NDArray[np.int64]:
    """Rows, int64 ascending, without an image in packed shards or on an exclusion list."""
    excluded = np.empty(0, dtype=np.int64)
    if isinstance(split.images, ShardImages):
        excluded = split.images.absent()
        if len(excluded):
            log(f"{len(excluded):,} samples were left out when the data set was packed")
    listed = None

    def told(text: str) -> None:
        log(f"left out: {text}")

    with naming_options(exclude="data.exclude", table="data.exclude"):
        path = find_exclusions(split, exclude)
        if path is None:
            return excluded
        if is_label_table(exclude):
            above, both = config.exclude_above, exclude == config.marks
            listed = read_left_out(path, split.index, above, told, keep_labelled=both)
        if listed is None:
            listed = np.array(list(read_exclusions(path, split.index, told)), dtype=np.int64)
    if len(listed):
        log(f"{len(listed):,} samples are left out, listed in {path}")
    elif is_label_table(exclude):
        log(f"no sample is left out: {path} has neither a mark nor a score above the limit")
    return np.union1d(excluded, listed)


def _without(split: Split, rows: NDArray[np.int64]) -> Split:
    return split.take(np.setdiff1d(np.arange(len(split)), rows)) if len(rows) else split


def leave_out(data: RunData) -> RunData:
    """The same data without the excluded training samples; the other samples keep their ids.

    Raises:
        UserError: No sample is left.
    """
    rows = np.flatnonzero(np.isin(data.train.index.sample_ids, data.excluded))
    if len(rows) == len(data.train):
        raise UserError(
            f"all {len(rows):,} training samples are left out, see the lines above; restore their "
            f"files and write the list again with `{verify_command(data.train)}`, or pass another "
            "list, or none, as --data.exclude"
        )
    return replace(data, train=_without(data.train, rows))


def hold_out(data: RunData, share: float, *, seed: int) -> RunData:
    """Holds out a random part of the training samples for validation.

    The part keeps its given labels, wrong ones included: no others are known. With balanced noise
    two models usually rank the same on it as on clean labels.

    Args:
        data: Training samples with noise, without excluded ones.
        share: Share to hold out, 0 to 1.
        seed: Seed of the choice.

    Raises:
        UserError: One of the two parts would be empty.
    """
    if share == 0:
        return data
    size = int(share * len(data.train))
    if not 0 < size < len(data.train):
        raise UserError(
            f"--data.validation {share}: holds out {size} of {len(data.train):,} training samples; "
            "pass a share that leaves some on both sides"
        )
    order = stream("hold-out", seed).permutation(len(data.train))
    rows = np.sort(order[:size])
    return replace(data, train=_without(data.train, rows), validation=data.train.take(rows))


def num_workers(config: DataConfig, processes: int = 1) -> int:
    """Workers of a loader; by default the cores of the machine, shared among its processes."""
    if config.workers is not None:
        return config.workers
    return min(max(usable_cores() // processes, 1), MOST_DEFAULT_WORKERS)


def inject_noise(
    noise: NoiseConfig, config: DataConfig, data: RunData, track: Callable[..., Iterable]
) -> InjectedNoise:
    """The labels to train on, see `alr_fast.noise.inject`.

    Args:
        noise: The noise, with a seed.
        config: How images are read, for noise that depends on them.
        data: With the labels of the data set.
        track: See `prepare_data`.
    """
    index, features = data.train.index, None
    if needs_features(noise.kind):
        features = noise_features(config, data.train, track)
    with naming_options(**{name: f"noise.{name}" for name in ("kind", "rate", "seed", "matrix")}):
        return inject(
            index.labels,
            num_classes=index.num_classes,
            kind=noise.kind,
            rate=noise.rate,
            seed=noise.seed or 0,
            class_names=index.class_names,
            features=features,
            matrix=None if noise.matrix is None else read_matrix(noise.matrix),
        )


def noise_features(
    config: DataConfig, train: Split, track: Callable[..., Iterable]
) -> NDArray[Any]:
    """Features for instance-dependent noise: pixels, uint8 [N, C, S, S], or features [N, D]."""
    if train.values is not None:
        return train.values
    progress = partial(track, description="Reading images for the noise", total=len(train))
    # Whole images: the noise of a seed stays the same however training decodes them.
    decoded = decode_all(
        train, FEATURE_SIZE, workers=num_workers(config), reduce=False, progress=progress
    )
    return decoded.array


def with_labels(data: RunData, labels: NDArray[np.int64]) -> RunData:
    """The same data with other training labels; the old ones become the clean labels if unknown."""
    train = replace(data.train, index=data.train.index.with_noisy_labels(labels))
    return replace(data, train=train)


def with_marks(data: RunData, file: str | None, log: Callable[[str], None]) -> RunData:
    """The same data with the labels that people chose; the clean labels stay what they are.

    Args:
        data: With the labels that the run trains on otherwise.
        file: The table of marks; None for the same data.
        log: Takes a line of text.

    Raises:
        UserError: The table cannot be read, or is that of other data.
    """
    if file is None:
        return data
    index = data.train.index
    with naming_options(table="data.marks"):
        read = read_labels(file, index, "label", part=True)
    differing = int((read.labels != index.labels).sum())
    log(f"marks: {read.listed:,} labels from {file}; {differing:,} differ from the given ones")
    for remark in read.remarks:
        log(f"marks: {remark}")
    return replace(data, train=replace(data.train, index=replace(index, labels=read.labels)))


def label_accuracy(index: SampleIndex) -> float | None:
    """Share of the given labels that are correct, None if unknown."""
    if index.clean_labels is None:
        return None
    return float((index.labels == index.clean_labels).mean())


def describe(config: Config, data: RunData, noise: InjectedNoise, world: World) -> str:
    """One line about the data of a run and the processes that train on it."""
    noisy = "" if noise.kind == "none" else f" {percent(noise.requested_rate)}"
    accuracy = percent(label_accuracy(data.train.index))
    processes = f" in {world.size} processes" if world.size > 1 else ""
    what = "samples" if isinstance(data.train.images, FeatureRows) else "images"
    tests = "no" if data.test is None else f"{len(data.test):,}"
    return (
        f"{config.recipe}: {len(data.train):,} training and {tests} test {what}, "
        f"{data.train.index.num_classes} classes; noise: {noise.kind}{noisy}, "
        f"label accuracy: {accuracy}; on {world.device.type}{processes}"
    )
