"""A run that starts from the weights and the label banks of an earlier run.

This is how a run is trained on: for more epochs, whose schedule is its own, on data that has grown,
or with labels that were corrected since.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alr_fast.bank.read_file import BankFile, strings, unreadable
from alr_fast.bank.reindexing import copy_known
from alr_fast.data.index import SampleIndex
from alr_fast.data.loaders.base import Loader
from alr_fast.errors import UserError, naming_options
from alr_fast.training.checkpoint.shards import CHUNK_BYTES
from alr_fast.training.config.schema import Config, soft_labels
from alr_fast.training.methods import keeps_bank
from alr_fast.training.output.run_folder import classes_in_summary, read_config
from alr_fast.training.resume import Start
from alr_fast.training.run import Run
from alr_fast.training.run_paths import BANK, CONFIG
from alr_fast.training.samples import read_index
from alr_fast.training.trained_model import load_for_data, weights_in
from alr_fast.training.trainer import Trainer
from alr_fast.utils.text import error_text, printable, some_names

_OPTIONS = {"warm_start": "warm-start", "weights": "warm-start"}


def check_warm_start(config: Config, start: Start, loader: Loader) -> None:
    """Checks that every method that begins anew can start from the earlier run.

    Args:
        config: Resolved configuration.
        start: Where this run starts.
        loader: Of the training samples.

    Raises:
        UserError: The earlier run has no such method or other classes, or its files cannot be read.
    """
    if config.warm_start is None:
        return
    source, index = Path(config.warm_start), loader.split.index
    begun: list[str] = []
    if start.checkpoint is not None:
        begun = [start.checkpoint.progress["method"], *start.checkpoint.progress["finished"]]
    methods = [method for method in config.methods if method not in begun]
    with naming_options(**_OPTIONS):
        if methods:
            _check_run(source, config, index)
        for method in methods:
            _load_weights(source, method, loader)
            if keeps_bank(method):
                _open_bank(source, method, index)


def _check_run(source: Path, config: Config, index: SampleIndex) -> None:
    if not (source / CONFIG).is_file():
        raise _problem(source, "is not the folder of a run; pass one")
    if soft_labels(config) is not None:
        raise _problem(
            source,
            "the label banks would start from its rows and from the soft labels of "
            "--data.label_file; leave one of the two out",
        )
    try:
        name = read_config(source)["model"]["name"]
    except (UserError, KeyError, TypeError) as error:
        raise _problem(source, f"{error_text(error)}; pass another run") from error
    if name != config.model.name:
        raise _problem(source, f"its model is {name}; pass --model.name {name}")
    classes = classes_in_summary(source)
    if classes is not None:  # else not finished; a label bank has them, too
        _check_classes(source, classes, index)


def _check_classes(source: Path, classes: tuple[str, ...], index: SampleIndex) -> None:
    if classes != index.class_names:
        raise _problem(
            source,
            f"has the classes {some_names(classes)}, this data set has "
            f"{some_names(index.class_names)}; pass a run with the same classes in the same order",
        )


def _problem(source: Path, text: str) -> UserError:
    return UserError(text, argument="warm_start", value=source)


def _load_weights(source: Path, method: str, loader: Loader) -> nn.Module:
    found, index = weights_in(source), loader.split.index
    if method not in found:
        has = ", ".join(map(printable, found)) or "none"
        raise _problem(source, f"has no weights of {method} (it has {has}); pass other --methods")
    return load_for_data(
        found[method],
        num_classes=index.num_classes,
        input_shape=loader.input_shape,
        class_names=index.class_names,
    )


def _open_bank(source: Path, method: str, index: SampleIndex) -> tuple[BankFile, SampleIndex]:
    """The label bank of a method in the earlier run, and its samples."""
    path = source / f"{method}{BANK}"
    if not path.is_file():
        raise _problem(source, f"has no {path.name}; pass another run, or other --methods")
    file = BankFile(path)
    try:
        classes = strings(file.columns.metadata, "class_names")
        old = read_index(file.columns, classes)
    except ValueError as error:
        raise unreadable(path, error_text(error)) from error
    _check_classes(source, classes, index)
    return file, old


def _source(run: Run, method: str) -> Path | None:
    """The run that a method starts from; None if it starts anew, or from its own checkpoint."""
    given = run.config.warm_start
    return None if given is None or run.checkpoint_of(method) is not None else Path(given)


def warm_weights(model: nn.Module, method: str, run: Run) -> None:
    """Gives a fresh model the weights of its method in the earlier run, if there is one.

    Raises:
        SharedError: They cannot be read.
    """
    source = _source(run, method)
    if source is not None:
        with naming_options(**_OPTIONS):
            saved = run.world.on_all_ranks(lambda: _load_weights(source, method, run.loaders.train))
        model.load_state_dict(saved.state_dict())
        run.console.log(f"{method}: starts from the weights in {source}")


def warm_bank(trainer: Trainer, method: str, run: Run) -> None:
    """Gives a fresh label bank the rows that its samples have in the earlier run, if there is one.

    Samples that are new, or have another given label now, keep the row of their label.

    Raises:
        SharedError: They cannot be read.
    """
    source, bank = _source(run, method), trainer.criterion.bank
    if source is None or bank is None:
        return
    with naming_options(**_OPTIONS):
        file, old = run.world.on_all_ranks(lambda: _open_bank(source, method, run.index))
    rows, known, relabelled = _rows_of(old, run.index)

    def copy() -> None:
        step = max(1, CHUNK_BYTES // (4 * file.num_classes))
        own = torch.from_numpy(rows[run.rows])
        for first in range(0, file.num_samples, step):
            piece = torch.from_numpy(file.read(slice(first, first + step)))
            copy_known(bank.rows, [piece], own, first=first)

    with bank.host_access():
        run.world.on_all_ranks(copy)
    if trainer.history is not None:  # else each row that is refined already would count as changed
        trainer.history.refined = bank.refined_labels().to(trainer.history.refined)
    taken, new = known - relabelled, len(rows) - known
    text = f"{method}: label bank: {taken:,} of {len(rows):,} rows are those in {source}"
    if new + relabelled:
        text += f"; {new:,} new samples and {relabelled:,} with another label start from it"
    run.console.log(text)
    warmup = getattr(run.config.options[method], "warmup_epochs", 0)
    if warmup:
        run.console.log(
            f"{method}: its warm-up of {warmup} epochs trains on the given labels again; to refine "
            f"from the start, pass --{method}.warmup_epochs 0"
        )


def _rows_of(old: SampleIndex, new: SampleIndex) -> tuple[NDArray[np.int64], int, int]:
    """For each sample its row in the earlier run, int64 [N], -1 where it starts anew; the number of
    known samples, and of those with another label."""
    rows = old.match(new.paths, new.sample_ids)
    known = rows >= 0
    relabelled = known & (old.labels[rows] != new.labels)
    rows[relabelled] = -1
    return rows, int(known.sum()), int(relabelled.sum())
