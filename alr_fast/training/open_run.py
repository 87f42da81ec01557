"""The refined labels of a run folder: of a finished run, or of its newest checkpoint."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from alr_fast.bank.checks import BANK_DTYPES
from alr_fast.bank.file import GIVEN_SHARE
from alr_fast.bank.history import COLUMNS, SampleHistory
from alr_fast.bank.placement import allocate_rows, read_in_order
from alr_fast.bank.read_file import BankFile, improbable, strings, unreadable
from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import BrokenImage, FeatureRows
from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.data.paths import path_option
from alr_fast.errors import UserError
from alr_fast.labels.arguments import most_excess
from alr_fast.labels.issues import LabelIssues
from alr_fast.training.checkpoint.manifest import Checkpoint, check_files, newest_checkpoint
from alr_fast.training.checkpoint.shards import shard
from alr_fast.training.checkpoint.store import load, saved_tensors
from alr_fast.training.config.schema import Config, DataConfig, NoiseConfig, words
from alr_fast.training.distributed import World, process_group
from alr_fast.training.output.run_folder import read_config
from alr_fast.training.progress import check_progress
from alr_fast.training.run_data import find_dataset
from alr_fast.training.run_images import find_images
from alr_fast.training.run_paths import BANK, CHECKPOINTS, CONFIG, actual_path, is_finished
from alr_fast.training.samples import (
    checked_ids,
    load_samples,
    read_index,
    sample_columns,
    samples_file,
)
from alr_fast.utils.command import CommandParser
from alr_fast.utils.text import did_you_mean, error_text, some_names

FindSplit = Callable[[], Split]


def from_bank_file(path: Path, method: str, find_split: FindSplit | None = None) -> LabelIssues:
    """The refined labels of a finished method, without images.

    Args:
        path: METHOD_bank.safetensors, see `alr_fast.training.sharded_bank.export_bank`.
        method: The method.
        find_split: Returns all samples of the data set, which a bank file of an earlier version
            needs; it has no paths.

    Raises:
        UserError: The file cannot be read or is damaged, or belongs to other samples.
    """
    file = BankFile(path)
    try:
        index = _index_of(file, path, find_split)
        history = {
            name: file.columns.array(name, torch.empty(0, dtype=dtype).numpy().dtype, len(index))
            for name, dtype in COLUMNS.items()
        }
        loss, changes = history["given_loss"], history["changes"]
        if (loss < 0).any() or np.isinf(loss).any() or (changes < 0).any():  # NaN: never trained
            raise ValueError("given_loss and changes are not those of a training")
        found = file.columns.metadata.get(GIVEN_SHARE)  # not in files of earlier versions
        share = None if found is None else float(found)
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"{GIVEN_SHARE} {found} is no share")
    except (ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise unreadable(path, error_text(error)) from error
    images = file.columns.metadata.get("samples") != "features"
    return _issues(method, index, history, file.read, has_images=images, given_share=share)


def _index_of(file: BankFile, path: Path, find_split: FindSplit | None) -> SampleIndex:
    columns, names = file.columns, strings(file.columns.metadata, "class_names")
    if len(names) != file.num_classes:
        raise ValueError(f"{len(names)} class_names for {file.num_classes} classes")
    if columns.has_checksum:
        index = read_index(columns, names)
    elif find_split is None:
        raise ValueError("it has no paths")
    else:  # of an earlier version
        fingerprint = columns.metadata["sample_fingerprint"]
        split = _matching(path, find_split(), checked_ids(columns), names, fingerprint)
        paths = sample_columns(split.index)
        for name in ("paths", "path_offsets"):
            columns.arrays[name] = paths[name]
        index = read_index(columns, names)
    if len(index) != file.num_samples:
        raise ValueError(f"{len(index)} ids for {file.num_samples} rows")
    return index


def _issues(
    method: str,
    index: SampleIndex,
    history: dict[str, NDArray[Any]],
    read: Callable[[slice], NDArray[np.float32]],
    *,
    has_images: bool,
    given_share: float | None,
    complete: bool = True,
) -> LabelIssues:
    """The samples with their rows of a label bank; `open_run` finds the images."""
    return LabelIssues(
        sample_ids=index.sample_ids,
        labels=index.labels,
        class_names=index.class_names,
        history=history,
        read=read,
        paths=index.paths,
        clean_labels=index.clean_labels,
        method=method,
        complete=complete,
        images=_not_opened if has_images else None,
        given_share=given_share,
    )


def _not_opened(row: int) -> NoReturn:
    raise BrokenImage("images are not opened")


def _matching(
    path: Path,
    split: Split,
    sample_ids: NDArray[np.int64],
    classes: tuple[str, ...],
    fingerprint: str,
) -> Split:
    """The samples of a split, [M], that belong to a label bank without paths.

    Raises:
        UserError: The data set has other classes or samples than the bank.
    """
    remedy = "pass the data of that run: --data-root DIR"
    if split.index.class_names != classes:
        raise UserError(
            f"{path}: was made with {len(classes)} classes ({some_names(classes)}), the data set "
            f"has {split.index.num_classes} ({some_names(split.index.class_names)}); {remedy}"
        )
    rows = split.index.find_rows(sample_ids)
    part = split.take(rows[rows >= 0])
    if part.index.sample_fingerprint() != fingerprint:  # as always if a sample is missing
        raise UserError(
            f"{path}: its sample fingerprint is not the data's: the data set has other files than "
            f"it had in training, or lists them in another order; {remedy}, as it was then"
        )
    return part


def _read_options(run: Path) -> Config:
    """The options of a run that its samples depend on, and its methods.

    Raises:
        UserError: The configuration does not exist or cannot be read.
    """
    if not run.is_dir():
        raise UserError(
            f"{run}: no such folder; pass the folder of a run, runs/latest for instance"
        )
    if not (run / CONFIG).is_file():
        raise UserError(
            f"{run}: not the folder of a run, it has no {CONFIG}; pass one below runs/, or "
            "runs/latest"
        )
    remedy = "use the version of alr_fast that wrote it"
    try:
        options = read_config(run)
        root = options["data_root"]
        if not isinstance(root, str | None):
            raise TypeError("data_root is no path")
        return Config(
            data=DataConfig(**options["data"]),
            noise=NoiseConfig(**options["noise"]),
            data_root=root,
            methods=_names_of_methods(options["methods"]),
        )
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / CONFIG}: cannot be read ({error}); {remedy}") from error


def marks_of_run(run: Path) -> str | None:
    """The marks that a run was trained with; None without any.

    Raises:
        UserError: Its configuration cannot be read.
    """
    return _read_options(run).data.marks


def plugins_of_run(run: Path) -> list[str]:
    """The programs that a training with the options of a run would import; [] without any.

    Raises:
        UserError: Its configuration cannot be read.
    """
    plugins = read_config(run).get("plugins") or []
    return words(plugins if isinstance(plugins, str) else [str(name) for name in plugins])


def _names_of_methods(methods: Any) -> list[str]:
    """The methods, which `--print_config` prints as a text with commas."""
    if not isinstance(methods, str | list) or not all(isinstance(m, str) for m in methods):
        raise TypeError("methods are no names")
    names = words(methods)
    for name in names:
        if re.fullmatch(r"\w+", name) is None:  # a part of the names of files
            raise TypeError(f"{name!r} is no name of a method")
    return names


def _train_split(options: Config) -> Split:
    """All training samples of the data set, with its own labels."""
    return find_dataset(options.data, options.data_root).split(options.data.train_split)


@contextmanager
def open_run(
    run: Path,
    *,
    method: str | None = None,
    data_root: str | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Iterator[LabelIssues]:
    """Opens the refined labels of a run: of its last epoch, or of the newest checkpoint of an
    unfinished run.

    The data set is not needed, except for runs of earlier versions. ``images`` and ``files`` of the
    result look for each image where the data is now, by its path.

    Args:
        run: Folder of the run.
        method: Method with the label bank; None for the last method that keeps one.
        data_root: Folder of the data now, None if it has not been moved.
        log: Takes a line of text.

    Raises:
        UserError: The run has no label bank yet, its files cannot be read or are damaged, or
            ``data_root`` has none of its samples.
    """
    options = _read_options(run)
    if data_root is not None:
        options.data_root = data_root
    with _without_images(run, method, options, log) as labels:
        if labels.images is None and data_root is None:
            yield labels
            return
        assert isinstance(labels.paths, PathTable)
        paths, ids, root = labels.paths, labels.sample_ids, options.data_root
        asked = data_root is not None
        find = cache(lambda: find_images(paths, ids, options.data, root, asked=asked))
        if asked:
            find()  # an error comes before anything is written
        if labels.images is not None:
            labels = replace(
                labels, images=lambda row: find().read(row), files=lambda row: find().file(row)
            )
        yield labels


@contextmanager
def _without_images(
    run: Path, method: str | None, options: Config, log: Callable[[str], None]
) -> Iterator[LabelIssues]:
    """`open_run`, without opening images."""
    methods = words(options.methods)
    if method is not None and method not in methods:
        raise UserError(
            f"--method {method}: not trained by {run}; it has {', '.join(methods)}"
            f"{did_you_mean(method, methods)}"
        )
    saved = [name for name in methods if (run / f"{name}{BANK}").is_file()]
    if method is None and saved:
        method = saved[-1]
    if method is not None and method in saved:
        yield from_bank_file(run / f"{method}{BANK}", method, lambda: _train_split(options))
        return
    checkpoint = None if is_finished(run) else newest_checkpoint(run / CHECKPOINTS)
    if checkpoint is not None:
        check_progress(checkpoint)
    if checkpoint is None or method not in (None, checkpoint.progress["method"]):
        what = f"method {method} has" if method else "it has"
        remedy = "train with a method that keeps one, alr for instance"
        if not is_finished(run):
            remedy = "it was not finished and left no checkpoint of one; --resume auto resumes it"
        elif saved:
            remedy = f"the methods that keep one are {', '.join(saved)}"
        raise UserError(f"{run}: {what} no label bank; {remedy}")
    with process_group("cpu") as world:
        yield _from_checkpoint(checkpoint, options, world, run, log)


def _from_checkpoint(
    checkpoint: Checkpoint, options: Config, world: World, run: Path, log: Callable[[str], None]
) -> LabelIssues:
    """The refined labels in a checkpoint, whatever number of processes wrote it.

    The rows, which may be larger than the memory, are copied into an unlinked temporary file in the
    folder of the run.
    """
    check_files(checkpoint)
    method, saved = checkpoint.progress["method"], saved_tensors(checkpoint)
    if "bank.rows" not in saved:
        raise UserError(
            f"{checkpoint.path}: method {method} keeps no label bank; wait for one that does, or "
            "train with alr"
        )
    shape, dtype = saved["bank.rows"]
    if len(shape) != 2 or 0 in shape or dtype not in BANK_DTYPES:
        raise UserError(
            f"{checkpoint.path}: its label bank is {dtype} {list(shape)}, which is none; train "
            "again, or pass another run"
        )
    size, classes = shape
    ids, given = torch.empty(size, dtype=torch.int64), torch.empty(size, dtype=torch.int64)
    history = SampleHistory(given, torch.device("cpu"))
    rows = allocate_rows(size, classes, dtype=dtype, device="cpu", placement="file", folder=run)
    wanted = {f"history.{name}": t for name, t in history.tensors().items()}
    wanted |= {"bank.ids": ids, "bank.given": given, "bank.rows": rows}
    mesh = world.mesh("cpu")
    with read_in_order(rows):
        load(checkpoint, {name: shard(t, 0, size, mesh) for name, t in wanted.items()})
    epoch, step = (checkpoint.progress["position"][key] for key in ("epoch", "step"))
    log(f"{method}: from {checkpoint.path}, in epoch {epoch + 1} after step {step}")
    # The rows of a checkpoint are in the order of the processes that own them.
    order = torch.argsort(ids)
    sample_ids, labels = ids[order].numpy(), given[order].numpy()
    index, has_images = _samples_of(checkpoint, options, run, sample_ids)
    if index.num_classes != classes or (labels < 0).any() or (labels >= classes).any():
        raise UserError(
            f"{checkpoint.path}: its label bank has {classes} classes and given labels up to "
            f"{labels.max()}, the run has {index.num_classes} classes; train again, or pass "
            "another run"
        )

    def read(some: slice) -> NDArray[np.float32]:
        values: NDArray[np.float32] = rows[order[some]].float().numpy()
        problem = improbable(values, some.start or 0, most_excess(dtype))
        if problem is not None:
            raise unreadable(checkpoint.path, problem)
        return values

    return _issues(
        method,
        replace(index, labels=labels),
        {name: column[order].numpy() for name, column in history.means().items()},
        read,
        has_images=has_images,
        given_share=checkpoint.progress.get("given_share"),
        complete=False,
    )


def _samples_of(
    checkpoint: Checkpoint, options: Config, run: Path, sample_ids: NDArray[np.int64]
) -> tuple[SampleIndex, bool]:
    """The samples of a checkpoint, ascending by id, and whether they are images."""
    facts = checkpoint.progress["data"]
    found = load_samples(run, facts["samples"])
    if found is not None:
        index, kind = found
        if not np.array_equal(index.sample_ids, sample_ids):
            raise UserError(
                f"{checkpoint.path}: its label bank has other samples than "
                f"{samples_file(run, facts['samples'])}; train again, or pass another run"
            )
        return index, kind != "features"
    # Of an earlier version: the data set has the samples.
    classes = tuple(facts["classes"])
    split = _matching(checkpoint.path, _train_split(options), sample_ids, classes, facts["samples"])
    clean = split.index.clean_labels
    if clean is None and options.noise.kind != "none":
        clean = split.index.labels  # noise was injected into them
    has_images = not isinstance(split.images, FeatureRows)
    return replace(split.index, clean_labels=clean), has_images


NEEDED = ("pyarrow", "yaml")  # of the extra train


def run_option(text: str) -> Path:
    """The type of an argument that names the folder of a run."""
    return actual_path(path_option(text))


def add_run_arguments(parser: CommandParser) -> None:
    """Adds the arguments that name a run."""
    parser.add_argument(
        "run", metavar="RUN", type=run_option, help="folder of a run, for example runs/latest"
    )
    parser.add_argument("--method", metavar="METHOD", help="default: the last with a label bank")
    parser.add_argument(
        "--data-root", type=path_option, metavar="DIR", help="folder of the data if it was moved"
    )
