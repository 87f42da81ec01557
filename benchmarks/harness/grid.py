"""A grid of training runs: its cells are trained in worker processes, several at once.

A cell is one run of `python -m alr_fast.train`. Each finished cell is a line of ``rows.jsonl`` in
the folder of the grid; an interrupted one resumes from its own checkpoint, so that the same command
completes an interrupted grid. A line counts only for a cell with the same options.
"""

import contextlib
import io
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from alr_fast.training.run_paths import actual_path
from alr_fast.utils.files import open_appending, write_text

ROWS = "rows.jsonl"
CHECKPOINT_MINUTES = "2"


@dataclass(frozen=True)
class Cell:
    """One run."""

    name: str  # the method or variant of a method that is compared
    noise: str  # kind and rate such as symmetric-0.4, or none
    seed: int  # of weights, batches and noise
    methods: tuple[str, ...]  # to train; the result is that of the last one
    options: tuple[str, ...]  # further words of the command line

    @property
    def key(self) -> str:
        """Name of the cell, unique in a grid."""
        return f"{self.name}/{self.noise}/{self.seed}"

    def command(self) -> list[str]:
        """Words for `alr_fast.train.main`, without those that do not change the result."""
        methods = ",".join(self.methods)
        return [*self.options, "--methods", methods, *noise_words(self.noise, self.seed)]


def noise_words(noise: str, seed: int) -> list[str]:
    """Words of the command line of the trainer for a noise such as ``symmetric-0.4``."""
    kind, rate = split_noise(noise)
    words = ["--seed", str(seed), "--noise.kind", kind]
    return [*words, "--noise.rate", str(rate)] if rate else words


def split_noise(noise: str) -> tuple[str, float]:
    """Kind and rate of a noise such as ``symmetric-0.4``; ``none`` has the rate 0.

    Raises:
        ValueError: The noise has neither of these forms.
    """
    kind, _, rate = noise.rpartition("-")
    if noise == "none":
        return "none", 0.0
    if not kind or not 0 < float(rate) <= 1:
        raise ValueError(f"{noise}: no noise; write a kind and a rate, symmetric-0.4, or none")
    return kind, float(rate)


class CellFailed(Exception):
    """A run ended with an error; the message contains the last line of its output."""


def run_cell(cell: Cell, folder: Path, extra: Sequence[str], device: str, threads: int) -> dict:
    """Trains one cell in this process and returns its row; resumes an interrupted attempt.

    Args:
        cell: The run.
        folder: Folder of the grid, in which the run has a folder until it is finished.
        extra: Words that do not change the result, such as the location of the data.
        device: See `alr_fast.training.config.schema.Config.device`.
        threads: Threads on the CPU.

    Raises:
        CellFailed: The run ended with an error.
    """
    import torch

    from alr_fast.train import main
    from benchmarks.harness.environment import environment

    torch.set_num_threads(threads)
    runs = folder / cell.key
    runs.mkdir(parents=True, exist_ok=True)
    output = runs / "output.txt"
    words = [
        *cell.command(),
        "--device", device, "--runs", str(runs), "--resume", "auto", "--log.show", "lines",
        "--log.to", "csv", "--checkpoint.minutes", CHECKPOINT_MINUTES, *extra,
    ]  # fmt: skip
    with (
        io.TextIOWrapper(open_appending(output), encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        status = main(words)
    if status == 130:
        raise KeyboardInterrupt
    if status != 0:
        last = (output.read_text(encoding="utf-8").splitlines() or ["no output"])[-1]
        raise CellFailed(f"{cell.key}: status {status}: {last}; its output is in {output}")
    summary = json.loads(actual_path(runs / "latest" / "summary.json").read_text(encoding="utf-8"))
    shutil.rmtree(runs)
    return {
        "method": cell.name,
        "noise": cell.noise,
        "seed": cell.seed,
        "noise_rate": summary["noise"]["realised_rate"],
        **summary["methods"][cell.methods[-1]],
        "epochs": summary["epochs"],
        "seconds": summary["seconds"],
        "train_samples": summary["data"]["train_samples"],
        "options": cell.command(),
        "environment": environment("cuda" if device.startswith("cuda") else "cpu"),
    }


def read_rows(folder: Path, cells: Iterable[Cell]) -> dict[str, dict]:
    """The finished rows of these cells, by the keys of the cells.

    Raises:
        ValueError: The file of rows is damaged, apart from a truncated last line.
    """
    path = folder / ROWS
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:  # the process was killed while writing
        write_text(path, whole + "\n" if whole else "")
    wanted = {cell.key: cell.command() for cell in cells}
    found = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            key, options = _key_of(row), row["options"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: line {number} is no row: move the file away") from error
        if wanted.get(key) == options:
            found[key] = row
    return found


def _key_of(row: dict) -> str:
    return f"{row['method']}/{row['noise']}/{row['seed']}"


def run_grid(
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int,
    device: str,
    threads: int,
    extra: Sequence[str] = (),
    title: str = "",
    log: Callable[[str], None] = print,
) -> list[dict]:
    """Trains the cells that have not been finished, and shows the progress.

    Args:
        cells: All cells, the most important first.
        folder: Folder of the grid; created if it is missing.
        jobs: Number of cells trained at once.
        device: See `run_cell`, also for ``threads`` and ``extra``.
        title: Title of the table.
        log: Takes a line of text if there is no terminal to show a table.

    Returns:
        One row for each cell, in the order of the cells.

    Raises:
        CellFailed: A cell failed. Cells that had already started were completed.
        KeyboardInterrupt: The user interrupted the command. Finished cells are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(folder, cells)
    missing = [cell for cell in cells if cell.key not in rows]
    display = _Display(cells, rows, title, log)
    with display if missing else contextlib.nullcontext():
        for row in _finished(missing, jobs, folder, extra, device, threads):
            with open_appending(folder / ROWS) as file:
                file.write(json.dumps(row).encode() + b"\n")
            rows[_key_of(row)] = row
            display.update()
    return [rows[cell.key] for cell in cells]


def _finished(cells: Sequence[Cell], jobs: int, *arguments: Any) -> Iterator[dict]:
    """Yields rows as the cells finish; uses worker processes if there are several jobs."""
    if jobs == 1:
        yield from (run_cell(cell, *arguments) for cell in cells)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        futures = [pool.submit(run_cell, cell, *arguments) for cell in cells]
        yield from (future.result() for future in as_completed(futures))
    except BrokenProcessPool as error:
        raise CellFailed("a worker process died; repeat the command to resume") from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Display:
    """Methods by noises: mean test accuracy of the last epoch, and the number of its seeds."""

    def __init__(
        self, cells: Sequence[Cell], rows: dict[str, dict], title: str, log: Callable[[str], None]
    ) -> None:
        self._cells, self._rows, self._title, self._log = cells, rows, title, log
        self._began, self._before = time.monotonic(), len(rows)
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> "_Display":
        if self._console.is_terminal:
            self._live.start()
        self._log(f"{self._title}: {len(self._rows)} of {len(self._cells)} cells are finished")
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def update(self) -> None:
        """Shows the current rows."""
        done, seconds = len(self._rows), time.monotonic() - self._began
        left = seconds / (done - self._before) * (len(self._cells) - done)
        state = f"{done} of {len(self._cells)} cells, {left / 60:.0f} min left"
        if self._console.is_terminal:
            self._live.update(self._table(state), refresh=True)
        elif done % 10 == 0 or done == len(self._cells):
            self._log(state)

    def _table(self, state: str) -> Table:
        noises = list(dict.fromkeys(cell.noise for cell in self._cells))
        table = Table("", *noises, title=f"{self._title}: test accuracy in %", caption=state)
        for name in dict.fromkeys(cell.name for cell in self._cells):
            cells = []
            for noise in noises:
                all_of = [c for c in self._cells if (c.name, c.noise) == (name, noise)]
                found = [self._rows[c.key] for c in all_of if c.key in self._rows]
                accuracy = [row["test_accuracy_last"] for row in found]
                accuracy = [value for value in accuracy if value is not None]
                mean = f"{100 * statistics.fmean(accuracy):.1f}" if accuracy else "-"
                cells.append(mean + ("" if len(found) == len(all_of) else f" ({len(found)})"))
            table.add_row(name, *cells)
        return table
