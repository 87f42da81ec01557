"""Progress of training on the terminal, as lines or as JSON."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from alr_fast.training.output.records import EpochRecord
from alr_fast.utils.console import WIDTH, Console
from alr_fast.utils.text import duration, percent, printable, rate

EVERY_EPOCH = 20  # so many epochs get a line each
LINES_PER_METHOD = 10  # of more, about so many do
LINE_SECONDS = 10.0  # and each that ends longer than this after the last line
PROGRESS_SECONDS = 1.0  # from one progress event of json to the next, at least


class RunDisplay(Console):
    """Prints the progress and the results of one training run; arguments as for `Console`."""

    @contextlib.contextmanager
    def training(
        self, method: str, *, epochs: int, steps: int, start_epoch: int = 0, start_step: int = 0
    ) -> Iterator["TrainingDisplay"]:
        """Shows the progress of one method.

        Args:
            method: Name of the method.
            epochs: Epochs that it trains.
            steps: Steps of an epoch.
            start_epoch: Epochs that a resumed run has behind it.
            start_step: Steps that it has behind it of the epoch after these.
        """
        columns = [
            TextColumn("{task.description:>5}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[epoch]}/" + str(epochs)),
            TextColumn("{task.fields[live]}"),
            TextColumn("{task.fields[test]}"),
            TextColumn("{task.fields[left]}"),
        ]
        if self.terminal.width >= WIDTH:
            columns.append(TimeElapsedColumn())
        progress = Progress(
            *columns,
            console=self.terminal,
            disable=not self.bars,
            expand=True,
            # Warnings go above the bar; into a file, where standard error is one.
            redirect_stderr=sys.stderr.isatty(),
        )
        with progress:
            yield TrainingDisplay(
                self, progress, method, epochs=epochs, steps=steps, start=(start_epoch, start_step)
            )

    def table(self, methods: dict[str, dict], *, epochs: int, folder: Path) -> None:
        """Prints the results of a run.

        Args:
            methods: For each method what ``summary.json`` holds about it.
            epochs: Number of the last epoch.
            folder: Folder of the run; only json tells it here.
        """
        if self.json:
            self.event("summary", epochs=epochs, methods=methods, folder=str(folder))
            return
        columns = {
            "test acc": lambda r: percent(r["test_accuracy_last"]),
            "best (epoch)": lambda r: f"{percent(r['test_accuracy_best'])} ({r['best_epoch']})",
            "labels right": lambda r: percent(r["label_accuracy_before"]),
            "after": lambda r: percent(r["label_accuracy_after"]),
            "changed": lambda r: percent(r["labels_changed"]),
            "img/s": lambda r: rate(r["samples_per_second"]),
            "time": lambda r: duration(r["seconds"], digits=1),
        }
        if self.terminal.width < WIDTH:
            del columns["changed"], columns["img/s"]
        if any(result["validation_accuracy_last"] is not None for result in methods.values()):
            columns = {
                "put aside": lambda r: percent(r["validation_accuracy_last"]),
                **columns,
            }
        table = Table(title=f"Last of {epochs} epochs (the best one is shown, never selected)")
        table.add_column("method")
        for title in columns:
            table.add_column(title, justify="right", no_wrap=True)
        for name, result in methods.items():
            table.add_row(name, *(cell(result) for cell in columns.values()))
        if self.main:
            self.terminal.print(table)

    def suspects(self, method: str, samples: list[dict[str, Any]], *, report: str) -> None:
        """Prints the samples whose labels are most suspicious.

        Args:
            method: Whose label bank says so.
            samples: As `alr_fast.labels.refined.RefinedLabels.samples` gives them, the most suspicious
                first.
            report: Command that shows them and more with their images.
        """
        shown = [
            {
                "id": int(sample["id"]),
                "path": printable(sample["path"]),
                "given": printable(sample["given_name"]),
                "refined": printable(sample["refined_name"]),
                "score": float(sample["score"]),
            }
            for sample in samples
        ]
        if self.json:
            self.event("suspects", method=method, samples=shown, report=report)
            return
        if not self.main:
            return
        if samples:
            table = Table(title=f"Most suspicious labels, as {method} sees them")
            table.add_column("id", justify="right", no_wrap=True)
            for name in ("path", "given", "refined"):
                table.add_column(name, overflow="fold")
            table.add_column("score", justify="right", no_wrap=True)
            for *texts, score in (one.values() for one in shown):
                table.add_row(*(Text(str(text)) for text in texts), f"{score:.3f}")
            self.terminal.print(table)
            self.terminal.print(f"with images: {report}", markup=False)
        else:
            self.log(f"{method}: no suspicious labels")

    def shares(self, title: str, phases: dict[str, tuple[float, float]]) -> None:
        """Prints where the time goes.

        Args:
            title: What the time was measured over.
            phases: For each name its time in seconds, and its share of the whole, 0 to 1.
        """
        if self.json:
            named = {name: {"seconds": s, "share": share} for name, (s, share) in phases.items()}
            self.event("profile", title=title, phases=named)
        elif self.bars or self.lines:
            table = Table("", title=title, title_justify="left", box=None, pad_edge=False)
            table.add_column("time", justify="right")
            table.add_column("share", justify="right")
            for name, (seconds, share) in phases.items():
                time_spent = f"{1000 * seconds:,.1f} ms" if seconds < 10 else duration(seconds)
                table.add_row(name, time_spent, percent(share))
            self.terminal.print(table)


class TrainingDisplay:
    """Progress of one method, as `RunDisplay.training` opens it.

    Where lines are printed, each epoch has one if there are `EVERY_EPOCH` or fewer. Of more, these
    have one: the first and the last of this process, those that divide the run into
    `LINES_PER_METHOD` parts, and those that end more than `LINE_SECONDS` after the last line.

    Args:
        owner: Where to print.
        progress: The bar, disabled where there is none.
        method: Name of the method.
        epochs: Epochs that it trains.
        steps: Steps of an epoch.
        start: Epochs, and steps of the next one, that were done before this process.
    """

    def __init__(
        self,
        owner: RunDisplay,
        progress: Progress,
        method: str,
        *,
        epochs: int,
        steps: int,
        start: tuple[int, int],
    ) -> None:
        self._owner = owner
        self._progress = progress
        self._method = method
        self._epochs = epochs
        self._steps = steps
        self._first = start[0] + 1
        self._start = start[0] * steps + start[1]
        self._every = 1 if epochs <= EVERY_EPOCH else round(epochs / LINES_PER_METHOD)
        self._began = self._last_line = time.monotonic()
        self._last_event = -math.inf
        self._task = progress.add_task(
            method,
            total=epochs * steps,
            completed=self._start,
            epoch=min(self._first, epochs),
            live="",
            test="",
            left="",
        )

    def step(
        self, epoch: int, step: int, loss: float, accuracy: float, samples_per_second: float
    ) -> None:
        """Shows where an epoch is.

        Args:
            epoch: Finished epochs.
            step: Steps of the one after them that are done.
            loss: Mean training loss of this epoch so far.
            accuracy: Share of training samples predicted as their given label so far.
            samples_per_second: Training samples a second, over all processes.
        """
        left = self._seconds_left(epoch * self._steps + step)
        self._progress.update(
            self._task,
            completed=epoch * self._steps + step,
            epoch=epoch + 1,
            live=_live(loss, accuracy, samples_per_second),
            left=_left(left),
        )
        now = time.monotonic()
        if self._owner.json and now - self._last_event >= PROGRESS_SECONDS:
            self._last_event = now
            self._owner.event(
                "progress",
                method=self._method,
                epoch=epoch + 1,
                epochs=self._epochs,
                step=step,
                steps=self._steps,
                loss=loss,
                accuracy=accuracy,
                samples_per_second=samples_per_second,
                seconds_left=left,
            )

    def epoch(self, record: EpochRecord) -> None:
        """Shows the figures of a finished epoch."""
        left = self._seconds_left(record.epoch * self._steps)
        self._progress.update(
            self._task,
            completed=record.epoch * self._steps,
            epoch=record.epoch,
            live=_live(record.train_loss, record.train_accuracy, record.samples_per_second),
            test=f"test {percent(record.test_accuracy)}",
            left=_left(left),
        )
        if self._owner.json:
            self._owner.event("epoch", **asdict(record), epochs=self._epochs, seconds_left=left)
        elif self._owner.lines and self._line_is_due(record.epoch):
            self._last_line = time.monotonic()
            self._owner.log(self._line(record, left))

    def _line_is_due(self, epoch: int) -> bool:
        return (
            epoch in (self._first, self._epochs)
            or epoch % self._every == 0
            or time.monotonic() - self._last_line > LINE_SECONDS
        )

    def _line(self, record: EpochRecord, left: float | None) -> str:
        width = len(str(self._epochs))
        parts = [
            f"{self._method:>5}",
            f"epoch {record.epoch:>{width}}/{self._epochs}",
            f"loss {record.train_loss:6.4f}",
            f"acc {percent(record.train_accuracy):>5}",
            f"test acc {percent(record.test_accuracy):>5}",
            f"changed {percent(record.labels_changed):>5}",
        ]
        if record.label_accuracy is not None:
            parts.append(f"labels right {percent(record.label_accuracy):>5}")
        parts.append(f"{rate(record.samples_per_second)} img/s")
        if record.skipped_steps:
            parts.append(f"skipped steps {record.skipped_steps}")
        if left:
            parts.append(_left(left))
        return "  ".join(parts)

    def _seconds_left(self, done: int) -> float | None:
        """Time that the rest of the method takes at the pace of this process.

        None as long as no step tells the pace. What was done before a resumed run is left out, it
        may have been on another machine.
        """
        own = done - self._start
        if own <= 0:
            return None
        return (time.monotonic() - self._began) / own * (self._epochs * self._steps - done)


def _live(loss: float, accuracy: float, samples_per_second: float) -> str:
    return f"loss {loss:.3f} acc {percent(accuracy)} {rate(samples_per_second)} img/s"


def _left(seconds: float | None) -> str:
    return f"{duration(seconds)} left" if seconds else ""
