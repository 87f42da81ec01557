"""Where the figures of each epoch are noted down: a CSV file, TensorBoard, Weights & Biases."""

import csv
import importlib.util
import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, astuple, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from alr_fast.errors import UserError
from alr_fast.training.config.schema import Config
from alr_fast.training.output.records import EpochRecord, Histogram
from alr_fast.utils.files import replacing, writing

LOGGER_NAMES = ("csv", "tensorboard", "wandb")


class Logger(ABC):
    """Takes epochs as they end. Process 0 alone has loggers."""

    @abstractmethod
    def epoch(self, record: EpochRecord, histograms: dict[str, Histogram]) -> None:
        """Notes one epoch of one method down.

        Args:
            record: Its figures.
            histograms: Distributions after it, each under its name.

        Raises:
            UserError: It cannot be written, the disk being full, for example.
        """

    @abstractmethod
    def close(self) -> None:
        """Writes what is still kept back."""


class CsvLogger(Logger):
    """A line for each method and epoch in ``metrics.csv``; histograms have no place there.

    Args:
        folder: Folder of the run.
        records: Epochs that the run has behind it; the file holds exactly these afterwards, in
            place of what a stopped run may have left.
    """

    def __init__(self, folder: Path, records: list[EpochRecord]) -> None:
        self._path = folder / "metrics.csv"
        with replacing(self._path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(field.name for field in fields(EpochRecord))
            writer.writerows(astuple(record) for record in records)

    def epoch(self, record: EpochRecord, histograms: dict[str, Histogram]) -> None:
        # Opened anew for each line: closing it is what tells that the line is on the disk.
        with writing(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(astuple(record))

    def close(self) -> None:
        pass


class TensorBoardLogger(Logger):
    """Events in ``tensorboard/METHOD``, so that TensorBoard draws the methods into one plot.

    Args:
        folder: Folder of the run.
        records: Epochs that the run has behind it; TensorBoard forgets those after them, which a
            stopped run may have left.
    """

    def __init__(self, folder: Path, records: list[EpochRecord]) -> None:
        self._folder = folder / "tensorboard"
        self._done = {record.method: record.epoch for record in records}  # the last one of each
        self._files: dict[str, _EventFile] = {}
        if self._folder.is_dir():  # at once, not only when a method has its first new epoch
            for path in sorted(self._folder.iterdir()):
                self._file(path.name)

    def epoch(self, record: EpochRecord, histograms: dict[str, Histogram]) -> None:
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

        values = [Summary.Value(tag=k, simple_value=v) for k, v in _figures(record).items()]
        for name, histogram in histograms.items():
            if any(histogram.counts):
                raw = HistogramProto(**_raw_histogram(histogram))
                values.append(Summary.Value(tag=name, histo=raw))
        self._file(record.method).write(record.epoch, summary=Summary(value=values))

    def close(self) -> None:
        pass

    def _file(self, method: str) -> "_EventFile":
        if method not in self._files:
            self._files[method] = _EventFile(
                self._folder / method, purge_step=self._done.get(method, 0) + 1
            )
        return self._files[method]


class _EventFile:
    """A file of TensorBoard events, each on the disk when `write` returns.

    In place of torch's SummaryWriter, which writes from a thread: there a full disk is a traceback.

    Args:
        folder: Gets the new file; made where it is missing.
        purge_step: TensorBoard forgets what older files there say of this step and later ones.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.write(0, file_version="brain.Event:2")
        self.write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = Event(step=step, wall_time=time.time(), **content)
        with writing(self._path), self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())


class WandbLogger(Logger):
    """One run at Weights & Biases for the run folder; ``METHOD/NAME`` are drawn over ``epoch``.

    A resumed run goes on under the id that the folder keeps in ``wandb.id``. What was sent cannot
    be taken back: an epoch that is trained again after a stop is there twice.

    Args:
        folder: Folder of the run.
        config: Resolved configuration.

    Raises:
        UserError: Weights & Biases refuses the run.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        import wandb

        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=config.log.wandb_project,
                name=folder.name,
                id=_wandb_id(folder),
                resume="allow",
                dir=str(folder),
                config=config.as_dict(),
                settings=wandb.Settings(
                    console="off",  # what is printed is a progress bar
                    silent=config.log.show in ("quiet", "json"),
                ),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--log.to wandb: {reason}; run wandb login, set WANDB_MODE=offline, or leave it "
                "out"
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
    """Checks the names in ``log.to`` before anything is written.

    Raises:
        UserError: An unknown name, or one whose package is missing.
    """
    for name in names:
        if name not in LOGGER_NAMES:
            raise UserError(f"--log.to {name}: no such logger; there is {', '.join(LOGGER_NAMES)}")
    if "wandb" in names:
        found = importlib.util.find_spec("wandb")
        # A mere folder has no origin, and W&B itself leaves one called wandb where it was used.
        if found is None or found.origin is None:
            raise UserError(
                "--log.to wandb: needs wandb, not installed: pip install 'alr_fast[wandb]', or "
                "leave it out"
            )


def make_loggers(config: Config, folder: Path, records: list[EpochRecord]) -> list[Logger]:
    """The loggers named in ``log.to``, which `check_loggers` has accepted.

    Args:
        config: Resolved configuration.
        folder: Folder of the run.
        records: Epochs that a resumed run has behind it, in order; none for a new run.

    Raises:
        UserError: A file cannot be written, or Weights & Biases refuses the run.
    """
    makers = {
        "csv": lambda: CsvLogger(folder, records),
        "tensorboard": lambda: TensorBoardLogger(folder, records),
        "wandb": lambda: WandbLogger(folder, config),
    }
    return [makers[name]() for name in dict.fromkeys(config.log.to)]


def _figures(record: EpochRecord) -> dict[str, float]:
    values = asdict(record)
    return {
        name: value
        for name, value in values.items()
        if name not in ("method", "epoch") and value is not None
    }


def _raw_histogram(histogram: Histogram) -> dict[str, Any]:
    # Sums as if every value lay in the middle of its bin, which is all that is known.
    counts = histogram.counts
    bins = list(pairwise(histogram.edges))
    middles = [(low + high) / 2 for low, high in bins]
    filled = [place for place, count in enumerate(counts) if count]
    return {
        "min": bins[filled[0]][0],
        "max": bins[filled[-1]][1],
        "num": sum(counts),
        "sum": sum(n * x for n, x in zip(counts, middles, strict=True)),
        "sum_squares": sum(n * x * x for n, x in zip(counts, middles, strict=True)),
        "bucket_limit": histogram.edges[1:],
        "bucket": counts,
    }


def _wandb_id(folder: Path) -> str:
    path = folder / "wandb.id"
    if not path.is_file():
        # The name alone is not enough: two machines may begin a run in the same second.
        with replacing(path) as fresh:
            fresh.write_text(f"{folder.name}-{secrets.token_hex(4)}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
