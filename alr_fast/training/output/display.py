"""Progress of training on the terminal, as lines or as JSON."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from alr_fast.labels.remarks import below_the_limit, estimate, truth, unseen
from alr_fast.labels.scored import ScoredLabels
from alr_fast.training.output.records import EpochRecord
from alr_fast.utils.console import WIDTH, Console
from alr_fast.utils.text import duration, percent, printable, rate

EVERY_EPOCH = 20  # up to this number of epochs, each epoch has a line
LINES_PER_METHOD = 10  # approximate number of lines for more epochs
LINE_SECONDS = 10.0  # an epoch that ends later than this after the last line has a line, too
UNEQUAL = 0.03  # difference of accuracy and balanced accuracy that is shown
FAR_BELOW = 0.15  # distance of the accuracy of a class that is shown
WORST_CLASSES = 3  # that are shown
PROGRESS_SECONDS = 1.0  # minimum time between two progress events of json


class TrainingDisplay:
    """Progress of one method. A context manager.

    If the console prints lines, up to `EVERY_EPOCH` epochs have a line each. Longer training has a
    line for the first and the last epoch of this process, those that divide the run into
    `LINES_PER_METHOD` parts, and those that end more than `LINE_SECONDS` after the last line.

    Args:
        console: Prints the progress.
        method: Name of the method.
        epochs, steps: Epochs of the method, steps of an epoch.
        start_epoch, start_step: Completed epochs of a resumed run, and steps of the next epoch.
    """

    def __init__(
        self,
        console: Console,
        method: str,
        *,
        epochs: int,
        steps: int,
        start_epoch: int = 0,
        start_step: int = 0,
    ) -> None:
        self._console = console
        self._method = method
        self._epochs = epochs
        self._steps = steps
        self._first = start_epoch + 1
        self._start = start_epoch * steps + start_step
        self._every = 1 if epochs <= EVERY_EPOCH else round(epochs / LINES_PER_METHOD)
        self._began = self._last_line = time.monotonic()
        self._last_event = -math.inf
        columns: list[ProgressColumn] = [
            TextColumn("{task.description:>5}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[epoch]}/" + str(epochs)),
            *(TextColumn(f"{{task.fields[{name}]}}") for name in ("live", "test", "left")),
        ]
        if console.terminal.width >= WIDTH:
            columns.append(TimeElapsedColumn())
        self._progress = Progress(
            *columns,
            console=console.terminal,
            disable=not console.bars,
            expand=True,
            # Warnings appear above the bar, unless standard error is a file.
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(
            method,
            total=epochs * steps,
            completed=self._start,
            epoch=min(self._first, epochs),
            live="",
            test="",
            left="",
        )

    def __enter__(self) -> "TrainingDisplay":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def step(
        self, epoch: int, step: int, loss: float, accuracy: float, samples_per_second: float
    ) -> None:
        """Shows the progress within an epoch.

        Args:
            epoch, step: Completed epochs, and completed steps of the next epoch.
            loss: Mean training loss of this epoch so far.
            accuracy: Share of training samples predicted as their given label so far.
            samples_per_second: Training samples per second, over all processes.
        """
        live = _live(loss, accuracy, samples_per_second)
        left = self._advance(epoch * self._steps + step, epoch=epoch + 1, live=live)
        now = time.monotonic()
        if self._console.json and now - self._last_event >= PROGRESS_SECONDS:
            self._last_event = now
            self._console.event(
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
        live = _live(record.train_loss, record.train_accuracy, record.samples_per_second)
        test = " ".join(_measured(record))
        done = record.epoch * self._steps
        left = self._advance(done, epoch=record.epoch, live=live, test=test)
        if self._console.json:
            self._console.event("epoch", **asdict(record), epochs=self._epochs, seconds_left=left)
        elif self._console.lines and self._line_is_due(record.epoch):
            self._last_line = time.monotonic()
            self._console.log(self._line(record, left))

    def _line_is_due(self, epoch: int) -> bool:
        return (
            epoch in (self._first, self._epochs)
            or epoch % self._every == 0
            or time.monotonic() - self._last_line > LINE_SECONDS
        )

    def _line(self, record: EpochRecord, left: float | None) -> str:
        width = len(str(self._epochs))
        parts = [
            f"{self._method:>5}  epoch {record.epoch:>{width}}/{self._epochs}",
            f"loss {record.train_loss:6.4f}  acc {percent(record.train_accuracy):>5}",
            *_measured(record, " acc"),
            f"changed {percent(record.labels_changed):>5}",
        ]
        if record.label_accuracy is not None:
            parts.append(f"label acc {percent(record.label_accuracy):>5}")
        parts.append(f"{rate(record.samples_per_second)} samples/s")
        if record.skipped_steps:
            parts.append(f"skipped steps {record.skipped_steps}")
        if left:
            parts.append(_left(left))
        return "  ".join(parts)

    def _advance(self, done: int, **shown: Any) -> float | None:
        """Moves the bar to a number of completed steps; estimates the seconds left.

        The estimate comes from the speed of this process, None before its first step. Steps before
        a resumption, possibly on another machine, do not count.
        """
        own, seconds = done - self._start, time.monotonic() - self._began
        left = seconds / own * (self._epochs * self._steps - done) if own > 0 else None
        self._progress.update(self._task, completed=done, left=_left(left), **shown)
        return left


class RunDisplay(Console):
    """Prints the progress and the results of one training run; arguments as for `Console`."""

    def training(self, method: str, **position: int) -> TrainingDisplay:
        """Shows the progress of one method; arguments as for `TrainingDisplay`."""
        return TrainingDisplay(self, method, **position)

    def table(
        self,
        methods: dict[str, dict[str, Any]],
        *,
        epochs: int,
        folder: Path,
        done: dict[str, int] | None = None,
    ) -> None:
        """Prints the results of a run.

        Args:
            methods: Entry of each method in ``summary.json``.
            epochs: Number of epochs of each method.
            folder: Folder of the run, printed only by json.
            done: Completed epochs of each method of a run that has not finished.
        """
        if self.json:
            finished = {"finished": True} if done is None else {"finished": False, "done": done}
            self.event("summary", epochs=epochs, methods=methods, folder=str(folder), **finished)
            return
        columns: dict[str, Callable[[dict[str, Any]], str]] = {
            "held out": lambda r: percent(r["validation_accuracy_last"]),
            "test acc": lambda r: percent(r["test_accuracy_last"]),
            "best (epoch)": lambda r: f"{percent(r['test_accuracy_best'])} ({r['best_epoch']})",
            "label acc": lambda r: percent(r["label_accuracy_before"]),
            "after": lambda r: percent(r["label_accuracy_after"]),
            "changed": lambda r: percent(r["labels_changed"]),
            "samples/s": lambda r: rate(r["samples_per_second"]),
            "time": lambda r: duration(r["seconds"], digits=1),
        }
        if self.terminal.width < WIDTH:
            del columns["changed"], columns["samples/s"]
        tested, held_out = (
            any(result[f"{name}_accuracy_last"] is not None for result in methods.values())
            for name in ("test", "validation")
        )
        remark = "the best one is shown, never selected"
        if not tested:
            del columns["test acc"], columns["best (epoch)"]
            remark = "no test samples" + ("" if held_out else ": accuracy is not measured")
        if not held_out:
            del columns["held out"]
        title = f"Last of {epochs} epochs ({remark})"
        if done is not None:
            parts = ", ".join(f"{name} {count} of {epochs}" for name, count in done.items())
            title = f"Not finished: epochs {parts} ({remark})"
        table = Table("method", title=title)
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for name, result in methods.items():
            table.add_row(name, *(cell(result) for cell in columns.values()))
        if self.main:
            self.terminal.print(table)
        for name, result in methods.items():
            line = _unequal_classes(result)
            if line is not None and self.main:
                self.terminal.print(printable(f"{name}: {line}"), markup=False)

    def seeds(self, means: dict[str, dict[str, Any]], *, seeds: list[int], epochs: int) -> None:
        """Prints the means over several seeds, with standard deviations.

        Args:
            means: For each method, see `alr_fast.training.output.averages.mean_row`.
            seeds: The seeds.
            epochs: Number of the last epoch.
        """
        if self.json:
            self.event("seeds", seeds=seeds, epochs=epochs, methods=means)
            return
        columns = {
            "held out": "validation_accuracy_last",
            "test acc": "test_accuracy_last",
            "label acc": "label_accuracy_before",
            "after": "label_accuracy_after",
            "changed": "labels_changed",
        }
        found = {
            title: name
            for title, name in columns.items()
            if any(name in mean for mean in means.values())
        }
        title = f"Mean of {len(seeds)} seeds ± standard deviation, last of {epochs} epochs"
        table = Table("method", title=title)
        for column in found:
            table.add_column(column, justify="right", no_wrap=True)
        for method, mean in means.items():
            table.add_row(method, *(_deviating(mean, name) for name in found.values()))
        if self.main:
            self.terminal.print(table)

    def suspects(self, labels: ScoredLabels, samples: list[dict[str, Any]], *, review: str) -> None:
        """Prints the samples with the highest scores of suspicion, whatever these are.

        Args:
            labels: All samples, with their scores.
            samples: As returned by its `samples`, the most suspicious first, and in ``next_name``
                the most probable class other than the given one, shown where the refined label is
                the given one; without any, a line about all samples is printed.
            review: Command that shows these and more samples, to be marked.
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
        method, suspicious = labels.method, labels.suspicious
        if self.json:
            self.event(
                "suspects",
                method=method,
                samples=shown,
                suspicious=None if labels.estimate_problem else suspicious,
                estimated_rate=labels.noise_rate,
                problem=labels.estimate_problem,
                review=review,
            )
        elif self.main and not shown:
            line = f"{method}: {estimate(labels)}; to review them: {review}"
            self.terminal.print(printable(line), markup=False)
        elif self.main:
            table = Table(title=f"Most suspicious labels, as {method} sees them")
            table.add_column("id", justify="right", no_wrap=True)
            for name in ("path", "given", "refined"):
                table.add_column(name, overflow="fold")
            table.add_column("score", justify="right", no_wrap=True)
            for sample, entry in zip(samples, shown, strict=True):
                *texts, score = entry.values()
                if entry["refined"] == entry["given"] and sample.get("next_name"):
                    texts[-1] = f"{texts[-1]} (next: {printable(sample['next_name'])})"
                table.add_row(*(Text(str(text)) for text in texts), f"{score:.3f}")
            self.terminal.print(table)
            said = [f"{method}: {estimate(labels)}", *below_the_limit(labels, len(shown))]
            said += truth(labels)
            for line in (*said, *unseen(labels), f"to review them: {review}"):
                self.terminal.print(printable(line), markup=False)

    def shares(self, title: str, phases: dict[str, tuple[float, float]]) -> None:
        """Prints a table of the phases of a step.

        Args:
            title: Title of the table.
            phases: Time of each phase in seconds, and its share of the whole, 0 to 1.
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


def _live(loss: float, accuracy: float, samples_per_second: float) -> str:
    return f"loss {loss:.3f} acc {percent(accuracy)} {rate(samples_per_second)} samples/s"


def _measured(record: EpochRecord, suffix: str = "") -> list[str]:
    """The accuracy on the test samples, else on those held out, else nothing."""
    if record.test_accuracy is not None:
        return [f"test{suffix} {percent(record.test_accuracy):>5}"]
    if record.validation_accuracy is not None:
        return [f"held out{suffix} {percent(record.validation_accuracy):>5}"]
    return []


def _unequal_classes(result: Mapping[str, Any]) -> str | None:
    """What an accuracy hides if the classes differ much; None if they do not."""
    name = "validation" if result["test_accuracy_last"] is None else "test"
    accuracy = result[f"{name}_accuracy_last"]
    balanced = result[f"{name}_balanced_accuracy_last"]
    worst = list(result["worst_classes"].items())[:WORST_CLASSES]
    if accuracy is None or balanced is None or not worst:
        return None
    if abs(accuracy - balanced) < UNEQUAL and worst[0][1] > accuracy - FAR_BELOW:
        return None
    classes = ", ".join(f"{name} ({percent(share)})" for name, share in worst)
    return f"balanced accuracy {percent(balanced)}; worst classes: {classes}"


def _deviating(mean: dict[str, Any], name: str) -> str:
    """Mean and deviation in percent, the mean alone without a deviation."""
    text, deviation = percent(mean.get(name)), mean.get(f"{name}_std")
    return text if deviation is None else f"{text} ± {100 * deviation:.1f}"


def _left(seconds: float | None) -> str:
    return f"{duration(seconds)} left" if seconds else ""
