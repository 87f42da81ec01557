"""The folder of a run.

runs/20260131-235959-digits/
    config.yaml              all options as they were asked for; input of --config
    resolved.yaml            values that follow from them: seed of the noise, length of a warm-up
    metrics.csv              a line for each method and epoch
    metrics.png              test accuracy and label accuracy per epoch
    METHOD.safetensors       weights of the last epoch, and what it takes to use them
                             (`alr_fast.training.description`)
    METHOD_classes.csv       samples and accuracy of each class
    METHOD_bank.safetensors  label bank of the last epoch, with ids, paths, labels and names of
                             classes, and a checksum of each row
    samples-*.safetensors    ids, paths and labels of the training samples, and names of classes;
                             another file after a change of the data set
    METHOD_transition.csv    transition matrix that the method corrects with
    tensorboard/METHOD/      events
    wandb/, wandb.id         files of Weights & Biases, and the id of the run there
    checkpoints/NUMBER/      checkpoints for --resume (`alr_fast.training.checkpoint.store`)
    trace.json.gz            time of each part of a step, with --profile
    .lock                    locked by the process that trains
    broken.csv               training samples with unreadable images, if any
    summary.json             results as fractions of 1, and the data and software behind them
runs/latest                  link to the last finished run

Only process 0 writes here. All files but the logs are written under a temporary name and renamed
when they are complete. ``summary.json`` marks a finished run; only plot and link come later.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from alr_fast.bank.file import write_tensors
from alr_fast.data.broken import BrokenSamples, write_exclusions
from alr_fast.data.tables.writing import save_table
from alr_fast.errors import UserError, naming_options
from alr_fast.training.config.schema import WEIGHTS, Config, flat, overlaid
from alr_fast.training.config.yaml_file import options_text, read_options
from alr_fast.training.output.loggers import Logger
from alr_fast.training.output.records import EpochRecord, Histogram, plot_records
from alr_fast.training.run_paths import CONFIG, LATEST, LOCK, RESOLVED, SUMMARY
from alr_fast.training.weights import weights_of
from alr_fast.utils.files import (
    KnownFolder,
    locked,
    open_regular,
    replace_link,
    write_text,
    writing,
)
from alr_fast.utils.text import error_text, is_utf8

_LONGEST_SUMMARY = 64 << 20  # bytes


class RunFolder:
    """Writes into the folder of a run during training; made by `create` or `open`.

    A file that cannot be written raises a `UserError` that names it.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loggers: list[Logger] = []
        with contextlib.ExitStack() as opened:
            self._lock = opened.enter_context(
                locked(
                    path / LOCK,
                    busy=f"{path}: another process is still training there; stop it first, or "
                    "leave --resume out to start a new run",
                )
            )
            with writing(path):
                self._known = KnownFolder(path)
            opened.pop_all()

    @property
    def in_place(self) -> bool:
        """Whether the folder has not been removed, moved or replaced since."""
        return self._known.in_place()

    @classmethod
    def create(cls, config: Config) -> "RunFolder":
        """Makes the folder of a new run and writes its configuration.

        Args:
            config: Resolved configuration of the run; `check_runs` has accepted its ``runs``.
        """
        with naming_options(runs="runs"):
            folder = cls(new_folder(Path(config.runs), config.recipe))
        with contextlib.ExitStack() as opened:
            opened.callback(folder.close)
            resolved = overlaid({}, config.resolved())
            if resolved:
                write_text(folder.path / RESOLVED, options_text(resolved))
            # This file makes the folder that of a run.
            write_text(folder.path / CONFIG, options_text(config.as_asked()))
            opened.pop_all()
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Opens the folder of a resumed run; writes nothing.

        Raises:
            UserError: ``path`` is not the folder of a run, or another process writes into it.
        """
        if not (path / CONFIG).is_file():
            raise UserError(
                f"{path}: not the folder of a run, it has no config.yaml; --resume auto finds the "
                "newest run"
            )
        return cls(path)

    def log_to(self, loggers: list[Logger]) -> None:
        """Logs the following epochs to these loggers, which `close` closes."""
        self._loggers = list(loggers)

    def log_epoch(self, record: EpochRecord, histograms: dict[str, Histogram]) -> None:
        """Passes an epoch and, by name, the distributions after it to every logger."""
        with contextlib.ExitStack() as stack:  # the others log even if one of them fails
            for logger in reversed(self._loggers):
                stack.callback(logger.epoch, record, histograms)

    def save_weights(
        self, method: str, model: nn.Module, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Writes the weights under their names in the model, and texts that describe it."""
        # Not by the library, which writes the texts in random order, and whose error for a full
        # disk is no OSError.
        write_tensors(self.path / f"{method}{WEIGHTS}", weights_of(model), metadata or {})

    def save_classes(self, method: str, table: Mapping[str, Sequence[Any]]) -> None:
        """Writes a table of the classes, column by column."""
        not_utf8 = () if all(map(is_utf8, table["name"])) else ("name",)
        save_table(self.path / f"{method}_classes.csv", [dict(table)], not_utf8=not_utf8)

    def save_broken(self, broken: BrokenSamples) -> None:
        """Writes the list of the training samples with unreadable images, if there are any."""
        if broken.reasons and self.in_place:
            rows = [(sample, *broken.reasons[sample]) for sample in sorted(broken.reasons)]
            write_exclusions(self.path / "broken.csv", rows)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes the file that marks a finished run."""
        text = json.dumps(summary, indent=2, allow_nan=False)
        write_text(self.path / SUMMARY, text + "\n")

    def plot(self, records: list[EpochRecord]) -> None:
        """Draws ``metrics.png``."""
        plot_records(records, self.path / "metrics.png")

    def link(self) -> None:
        """Points ``latest`` to this folder."""
        replace_link(self.path.parent / LATEST, self.path.name)

    @property
    def is_latest(self) -> bool:
        """Whether ``latest`` points to this folder: not on a file system without links."""
        return os.path.realpath(self.path.parent / LATEST) == os.path.realpath(self.path)

    def close(self) -> None:
        """Closes the loggers and releases the lock; a second call does nothing."""
        self._lock.close()
        self._known.close()
        self.close_loggers()

    def close_loggers(self) -> None:
        """Lets the loggers write what they still have; a second call does nothing."""
        loggers, self._loggers = self._loggers, []
        with contextlib.ExitStack() as stack:  # closes the others even if one of them fails
            for logger in loggers:
                stack.callback(logger.close)


def read_config(run: Path, *, asked: bool = False) -> dict[str, Any]:
    """Reads the options of a run, with the values that it used.

    Args:
        run: Its folder.
        asked: Whether to return the values that were asked for.

    Raises:
        UserError: They cannot be read. The message has no remedy, which the caller appends.
    """
    options = _read_options(run / CONFIG)
    if asked or not (run / RESOLVED).is_file():  # a run of an earlier version has one file
        return options
    try:
        return overlaid(options, flat(_read_options(run / RESOLVED)))
    except TypeError:
        raise UserError(f"{run / CONFIG}: cannot be read (does not fit {RESOLVED})") from None


def _read_options(path: Path) -> dict[str, Any]:
    try:
        options = read_options(path)
        if not options:
            raise ValueError("no options in it")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error_text(error)})") from error
    return options


def read_summary(run: Path) -> dict[str, Any]:
    """Reads ``summary.json`` of a run.

    Args:
        run: Its folder.

    Raises:
        UserError: It is missing or cannot be read. The message has no remedy, which the caller
            appends.
    """
    path = run / SUMMARY
    try:
        with open_regular(path, _LONGEST_SUMMARY) as file:
            summary = json.loads(file.read())
        if not isinstance(summary, dict):
            raise ValueError("no results in it")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error_text(error)})") from error
    return summary


def classes_in_summary(run: Path) -> tuple[str, ...] | None:
    """Names of the classes of a finished run; None if its ``summary.json`` does not have them."""
    try:
        names = tuple(read_summary(run)["data"]["classes"])
    except (UserError, KeyError, TypeError):
        return None
    return names if all(isinstance(name, str) for name in names) else None


def check_runs(runs: str) -> None:
    """Checks before training that run folders can be made in ``runs``; leaves no file or folder.

    Raises:
        UserError: They cannot be made.
    """
    path = Path(runs)
    # os.path, because methods of Path raise for a folder without permission.
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UserError("is not a folder; pass another folder", argument="runs", value=runs)
    latest = path / LATEST
    if os.path.exists(latest) and not os.path.islink(latest):
        raise UserError(f"{latest}: must be free for the link to the last run; move it away")
    parent = next(p for p in (path, *path.absolute().parents) if os.path.exists(p))
    try:
        # Only an attempt detects a read-only disk or /proc.
        os.rmdir(tempfile.mkdtemp(prefix=".alr_fast-", dir=parent))
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error}); pass another folder"
        raise UserError(problem, argument="runs", value=runs) from error


def new_folder(runs: Path, name: str) -> Path:
    """Makes a folder in ``runs`` that is named after the time and ``name``; returns it.

    Raises:
        UserError: It cannot be made; the argument is ``runs``.
    """
    stem = time.strftime("%Y%m%d-%H%M%S") + f"-{name}"
    path, number = runs / stem, 1
    try:
        runs.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()  # fails for an existing folder: runs never share a folder
                return path
            except FileExistsError:
                number += 1
                path = runs / f"{stem}-{number}"
    except OSError as error:
        problem = f"{error.strerror or error}; pass another folder"
        raise UserError(problem, argument="runs", value=runs) from error
