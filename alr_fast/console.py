"""What a run shows: progress bars on a terminal, plain lines elsewhere, a table at the end."""

import contextlib
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from alr_fast.runs import EpochRecord

LINES_PER_METHOD = 10  # where there is no terminal to draw a bar on


class RunConsole:
    """Prints for one run."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Prints one line."""
        self.console.print(text, markup=False)

    def track(self, items: Iterable, *, description: str, total: int) -> Iterator:
        """Passes the items on while a bar shows how many there were."""
        if not self.console.is_terminal:
            self.say(f"{description}: {total:,}")
            yield from items
            return
        with Progress(console=self.console, transient=True) as progress:
            yield from progress.track(items, total=total, description=description)

    @contextlib.contextmanager
    def training(self, method: str, *, epochs: int, steps: int) -> Iterator["TrainingDisplay"]:
        """Shows the progress of one method.

        Args:
            method: Name of the method.
            epochs: Epochs that it trains.
            steps: Steps of an epoch.
        """
        progress = Progress(
            TextColumn("{task.description:>5}"),
            BarColumn(bar_width=None),
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            TextColumn("{task.fields[live]}"),
            TextColumn("{task.fields[test]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
        )
        with progress:
            yield TrainingDisplay(self, progress, method, epochs, steps)

    def table(self, methods: dict[str, dict], *, epochs: int) -> None:
        """Prints the results of a run.

        Args:
            methods: For each method what ``summary.json`` holds about it.
            epochs: Number of the last epoch.
        """
        table = Table(title=f"Last of {epochs} epochs (the best one is shown, never selected)")
        table.add_column("method")
        for title in ("test acc", "best (epoch)", "labels right", "after", "time"):
            table.add_column(title, justify="right", no_wrap=True)
        for name, result in methods.items():
            table.add_row(
                name,
                percent(result["test_accuracy_last"]),
                f"{percent(result['test_accuracy_best'])} ({result['best_epoch']})",
                percent(result["label_accuracy_before"]),
                percent(result["label_accuracy_after"]),
                f"{result['seconds']:.1f} s",
            )
        self.console.print(table)


class TrainingDisplay:
    """Bar of one method; without a terminal about `LINES_PER_METHOD` lines."""

    def __init__(
        self, owner: RunConsole, progress: Progress, method: str, epochs: int, steps: int
    ) -> None:
        self._owner = owner
        self._progress = progress
        self._method = method
        self._epochs = epochs
        self._steps = steps
        self._every = max(round(epochs / LINES_PER_METHOD), 1)
        self._task = progress.add_task(method, total=epochs * steps, epoch=1, live="", test="")

    def step(self, epoch: int, step: int, loss: float, accuracy: float) -> None:
        """Shows training loss and accuracy after ``step`` steps of epoch ``epoch`` (from 0)."""
        self._progress.update(
            self._task,
            completed=epoch * self._steps + step,
            epoch=epoch + 1,
            live=f"loss {loss:.3f} acc {percent(accuracy)}",
        )

    def epoch(self, record: EpochRecord) -> None:
        """Shows the figures of a finished epoch."""
        self._progress.update(
            self._task,
            completed=record.epoch * self._steps,
            live=f"loss {record.train_loss:.3f} acc {percent(record.train_accuracy)}",
            test=f"test {percent(record.test_accuracy)}",
        )
        wanted = record.epoch % self._every == 0 or record.epoch in (1, self._epochs)
        if wanted and not self._owner.console.is_terminal:
            labels = record.label_accuracy
            self._owner.say(
                f"{self._method:>5}  epoch {record.epoch:>3}/{self._epochs}"
                f"  loss {record.train_loss:7.4f}  acc {percent(record.train_accuracy):>6}"
                f"  test acc {percent(record.test_accuracy):>6}"
                + (f"  labels right {percent(labels):>6}" if labels is not None else "")
            )


def percent(fraction: float | None) -> str:
    """``0.123`` as ``12.3%``; ``-`` for what is not known."""
    return "-" if fraction is None else f"{100 * fraction:.1f}%"
