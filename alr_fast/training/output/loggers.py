"""Loggers of the figures of each epoch: a CSV file, TensorBoard, Weights & Biases."""

import csv
import importlib.util
import io
import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, astuple, fields
from itertools import compress, pairwise
from pathlib import Path
from typing import Any

from alr_fast.errors import UserError, naming_options
from alr_fast.training.config.schema import Config
from alr_fast.training.output.records import EpochRecord, Histogram
from alr_fast.utils.files import open_appending, own_folder, replacing, write_text, writing
from alr_fast.utils.requirements import install_command
from alr_fast.utils.text import did_you_mean, error_text

LOGGER_NAMES = ("csv", "tensorboard", "wandb")


class Logger(ABC):
    """Logs each finished epoch. Only process 0 has loggers."""

    @abstractmethod
    def epoch(self, record: EpochRecord, histograms: dict[str, Histogram]) -> None:
        """Logs one epoch of one method.

        Args:
            record: Its figures.
            histograms: Distributions after the epoch, by name.

        Raises:
            UserError: A file cannot be written, for example because the disk is full.
        """

    def close(self) -> None:
        """Writes what is not in the files yet; the logger takes no epoch afterwards."""
        return None


class CsvLogger(Logger):
    """Writes a line for each method and epoch to ``metrics.csv``, without histograms.

    Args:
        folder: Folder of the run.
        records: Completed epochs of the run. They replace the content of the file, which may have
            more epochs of a stopped run.
    """

    def __init__(self, folder: Path, records: list[EpochRecord]) -> None:
        self._path = folder / "metrics.csv"
        self._records = list(records)
        self._rewrite()

    def _rewrite(self) -> None:
        """Writes the file anew, with all epochs."""
        self._complete = False
        with replacing(self._path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(field.name for field in fields(EpochRecord))
            writer.writerows(astuple(record) for record in self._records)
        self._complete = True

    def epoch(self, record: EpochRecord, histograms: dict[str, Histogram]) -> None:
        self._records.append(record)
        if not self._complete:
            self._rewrite()
            return
        # Opened and closed for each line: closing reports a line that could not be written.
        line = io.StringIO(newline="")
        csv.writer(line).writerow(astuple(record))
        self._complete = False  # a full disk takes a part of a line
        with writing(self._path), open_appending(self._path) as file:
            file.write(line.getvalue().encode())
        self._complete = True

    def close(self) -> None:
        if not self._complete:
            self._rewrite()


class TensorBoardLogger(Logger):
    """Writes events to ``tensorboard/METHOD``, so that TensorBoard plots the methods together.

    Args:
        folder: Folder of the run.
        records: Completed epochs of the run. TensorBoard discards later epochs of a stopped run.
    """

    def __init__(self, folder: Path, records: list[EpochRecord]) -> None:
        self._folder = folder / "tensorboard"
        self._last_epoch = {record.method: record.epoch for record in records}
        self._files: dict[str, Path] = {}
        if self._folder.is_dir():  # at the start, not only with the first new epoch of a method
            for path in sorted(self._folder.iterdir()):
                self._file(path.name)

    def epoch(self, record: EpochRecord, histograms: dict[str, Histogram]) -> None:
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

        values = [Summary.Value(tag=k, simple_value=v) for k, v in _figures(record).items()]
        for name, histogram in histograms.items():
            if any(histogram.counts):
                raw = HistogramProto(**_raw_histogram(histogram))
                values.append(Summary.Value(tag=name, histo=raw))
        path = self._file(record.method)
        # After an event that a full disk took a part of, the file is not continued.
        del self._files[record.method]
        _write_event(path, record.epoch, summary=Summary(value=values))
        self._files[record.method], self._last_epoch[record.method] = path, record.epoch

    def _file(self, method: str) -> Path:
        """The file of a method; a new file begins by hiding later epochs of a stopped run."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        if method not in self._files:
            folder = self._folder / method
            # TensorBoard reads the files of a folder in the order of their names.
            name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
            own_folder(self._folder)
            own_folder(folder)
            _write_event(folder / name, 0, file_version="brain.Event:2")
            start = SessionLog(status=SessionLog.START)
            _write_event(folder / name, self._last_epoch.get(method, 0) + 1, session_log=start)
            self._files[method] = folder / name
        return self._files[method]


def _write_event(path: Path, step: int, **content: Any) -> None:
    # torch's SummaryWriter would write from a thread, where a full disk leads to a traceback.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    event = Event(step=step, wall_time=time.time(), **content)
    with writing(path), open_appending(path) as file:
        RecordWriter(file).write(event.SerializeToString())


class WandbLogger(Logger):
    """Logs to one run at Weights & Biases; ``METHOD/NAME`` is plotted over ``epoch``.

    A resumed run keeps its id, which is stored in ``wandb.id``. Logged epochs cannot be deleted: an
    epoch that is repeated after a stop is logged twice.

    Args:
        folder: Folder of the run.
        config: Resolved configuration.

    Raises:
        UserError: Weights & Biases rejects the run.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        import wandb

        own_folder(folder / "wandb")
        self._wandb = wandb
        silent = config.log.show in ("quiet", "json")
        try:
            self._run = wandb.init(
                project=config.log.wandb_project,
                name=folder.name,
                id=_wandb_id(folder),
                resume="allow",
                dir=str(folder),
                config=config.as_dict(),
                # Standard output is a progress bar.
                settings=wandb.Settings(console="off", silent=silent),
            )
        except wandb.errors.Error as error:
            remedy = "run wandb login, set WANDB_MODE=offline, or leave it out"
            raise UserError(
                f"{error_text(error)}; {remedy}", argument="logger", value="wandb"
            ) from error
        self._run.define_metric("epoch", hidden=True)
        for method in config.methods:
            self._run.define_metric(f"{method}/*", step_metric="epoch")

    def epoch(self, record: EpochRecord, histograms: dict[str, Histogram]) -> None:
        values: dict[str, Any] = _figures(record)
        for name, histogram in histograms.items():
            values[name] = self._wandb.Histogram(np_histogram=(histogram.counts, histogram.edges))
        named = {f"{record.method}/{name}": value for name, value in values.items()}
        self._run.log({"epoch": record.epoch, **named})

    def close(self) -> None:
        self._run.finish()


def check_loggers(names: list[str]) -> None:
    """Checks the names of loggers before any file is written.

    Raises:
        UserError: A name is unknown, or its package is missing; the argument is ``logger``.
    """
    for name in names:
        if name not in LOGGER_NAMES:
            choice = f"choose from {', '.join(LOGGER_NAMES)}{did_you_mean(name, LOGGER_NAMES)}"
            problem = f"no such logger; {choice}"
            raise UserError(problem, argument="logger", value=name)
    # A folder named wandb, which W&B itself creates, is found as a package without an origin.
    if "wandb" in names and not getattr(importlib.util.find_spec("wandb"), "origin", None):
        command = install_command(["wandb"], "wandb")
        problem = f"needs wandb, not installed: {command}, or leave it out"
        raise UserError(problem, argument="logger", value="wandb")


def make_loggers(config: Config, folder: Path, records: list[EpochRecord]) -> list[Logger]:
    """Makes the loggers named in ``log.to``, which `check_loggers` has accepted.

    Args:
        config: Resolved configuration.
        folder: Folder of the run.
        records: Completed epochs of a resumed run, in order; empty for a new run.

    Raises:
        UserError: A file cannot be written, or Weights & Biases rejects the run.
    """
    makers: dict[str, Callable[[], Logger]] = {
        "csv": lambda: CsvLogger(folder, records),
        "tensorboard": lambda: TensorBoardLogger(folder, records),
        "wandb": lambda: WandbLogger(folder, config),
    }
    made: list[Logger] = []
    with naming_options(logger="log.to"), ExitStack() as opened:
        for name in dict.fromkeys(config.log.to):
            made.append(makers[name]())
            opened.callback(made[-1].close)
        opened.pop_all()
    return made


def _figures(record: EpochRecord) -> dict[str, float]:
    values = asdict(record)
    del values["method"], values["epoch"]
    return {name: value for name, value in values.items() if value is not None}


def _raw_histogram(histogram: Histogram) -> dict[str, Any]:
    # The sums assume that every value lies in the middle of its bin.
    counts, bins = histogram.counts, list(pairwise(histogram.edges))
    middles = [(low + high) / 2 for low, high in bins]
    filled = list(compress(bins, counts))
    return {
        "min": filled[0][0],
        "max": filled[-1][1],
        "num": sum(counts),
        "sum": sum(n * x for n, x in zip(counts, middles, strict=True)),
        "sum_squares": sum(n * x * x for n, x in zip(counts, middles, strict=True)),
        "bucket_limit": histogram.edges[1:],
        "bucket": counts,
    }


def _wandb_id(folder: Path) -> str:
    path = folder / "wandb.id"
    if not path.is_file():
        # The name alone is not unique: two machines may start a run in the same second.
        write_text(path, f"{folder.name}-{secrets.token_hex(4)}\n")
    return path.read_text(encoding="utf-8").strip()
