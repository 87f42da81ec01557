"""Many training runs as one table: cells that are trained in worker processes, several at once.

A cell is one run of `python -m alr_fast.train`. Each that is finished is a line in ``rows.jsonl``
of the grid's folder, and one that was stopped goes on from its own checkpoint: the same command
takes up what an interrupted one left. A line counts only for a cell with the same options.
"""

import contextlib
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

ROWS = "rows.jsonl"
CHECKPOINT_MINUTES = "2"


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: What is compared: a method, or a variant of one.
        noise: Kind and rate, ``symmetric-0.4``; ``none``.
        seed: Of weights, batches and noise.
        methods: Methods that are trained, the one that counts last.
        options: More words of the command line.
    """

    name: str
    noise: str
    seed: int
    methods: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its name among the cells of a grid."""
        return f"{self.name}/{self.noise}/{self.seed}"

    def command(self) -> list[str]:
        """Words for `alr_fast.train.main`, without those that do not change the result."""
        kind, rate = split_noise(self.noise)
        words = [*self.options, "--methods", ",".join(self.methods), "--seed", str(self.seed)]
        words += ["--noise.kind", kind]
        return words + (["--noise.rate", str(rate)] if rate else [])


def split_noise(noise: str) -> tuple[str, float]:
    """Kind and rate of ``symmetric-0.4``; ``none`` has the rate 0.

    Raises:
        ValueError: It is neither.
    """
    kind, _, rate = noise.rpartition("-")
    if noise == "none":
        return "none", 0.0
    if not kind or not 0 < float(rate) <= 1:
        raise ValueError(f"{noise}: no noise; write a kind and a rate, symmetric-0.4, or none")
    return kind, float(rate)


class CellFailed(Exception):
    """A run ended with an error; the message ends with what it printed last."""


def run_cell(cell: Cell, folder: Path, extra: Sequence[str], device: str, threads: int) -> dict:
    """Trains one cell in this process; goes on where an earlier attempt was stopped.

    Args:
        cell: What to train.
        folder: Where the run has its folder, which is removed at the end, and its output.
        extra: Words that do not change the result, the place of the data for example.
        device: See `alr_fast.training.config.schema.Config.device`.
        threads: Threads of the CPU.

    Returns:
        The row.

    Raises:
        CellFailed: The run ended with an error.
    """
    import torch

    from alr_fast.train import main
    from benchmarks.harness.environment import environment

    torch.set_num_threads(threads)
    runs = folder / cell.key
    runs.mkdir(parents=True, exist_ok=True)
    log = runs / "output.txt"
    words = [
        *cell.command(),
        "--device", device, "--runs", str(runs), "--resume", "auto", "--log.show", "lines",
        "--log.to", "csv", "--checkpoint.minutes", CHECKPOINT_MINUTES, *extra,
    ]  # fmt: skip
    with log.open("a", encoding="utf-8") as file, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(file))
        stack.enter_context(contextlib.redirect_stderr(file))
        status = main(words)
    if status == 130:
        raise KeyboardInterrupt
    if status != 0:
        lines = log.read_text(encoding="utf-8").splitlines()
        last = lines[-1] if lines else "no output"
        raise CellFailed(f"{cell.key}: status {status}: {last}; its output is in {log}")
    summary = json.loads((runs / "latest" / "summary.json").read_text(encoding="utf-8"))
    result = summary["methods"][cell.methods[-1]]
    row = {
        "method": cell.name,
        "noise": cell.noise,
        "seed": cell.seed,
        "noise_rate": summary["noise"]["realised_rate"],
        **{key: value for key, value in result.items() if key not in ("seconds",)},
        "epochs": summary["epochs"],
        "seconds": summary["seconds"],
        "train_samples": summary["data"]["train_samples"],
        "options": cell.command(),
        "environment": environment("cuda" if device.startswith("cuda") else "cpu"),
    }
    shutil.rmtree(runs)
    return row


def read_rows(folder: Path, cells: Iterable[Cell]) -> dict[str, dict]:
    """The rows that are there for these cells, by their keys.

    Raises:
        ValueError: The file of rows is damaged other than by a last line that was cut off.
    """
    path = folder / ROWS
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:  # the process was killed while it wrote
        path.write_text(whole + "\n" if whole else "", encoding="utf-8")
    wanted = {cell.key: cell.command() for cell in cells}
    found = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            key = f"{row['method']}/{row['noise']}/{row['seed']}"
            options = row["options"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: line {number} is no row: move the file away") from error
        if wanted.get(key) == options:
            found[key] = row
    return found


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
    """Trains what is not there yet, and shows how far it is.

    Args:
        cells: All cells, the most telling first.
        folder: Of this grid; made where it is missing.
        jobs: Cells at once.
        device: See `run_cell`, as for ``threads`` and ``extra``.
        title: Of the table.
        log: Takes a line, where there is no terminal to show a table.

    Returns:
        A row for each cell, in their order.

    Raises:
        CellFailed: Of the first cell that failed; those under way were finished, none was begun
            after it.
        KeyboardInterrupt: The user stopped it; what was finished is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(folder, cells)
    left = [cell for cell in cells if cell.key not in rows]
    display = _Display(cells, rows, title, log)
    with display if left else contextlib.nullcontext():
        for row in _finished(left, jobs, folder, extra, device, threads):
            with (folder / ROWS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            rows[f"{row['method']}/{row['noise']}/{row['seed']}"] = row
            display.update()
    return [rows[cell.key] for cell in cells]


def _finished(cells: Sequence[Cell], jobs: int, *arguments: Any) -> Iterator[dict]:
    """The rows of the cells as they are done, in worker processes where there are several jobs."""
    if jobs == 1:
        yield from (run_cell(cell, *arguments) for cell in cells)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        futures = [pool.submit(run_cell, cell, *arguments) for cell in cells]
        yield from (future.result() for future in as_completed(futures))
    except BrokenProcessPool as error:
        raise CellFailed("a worker process died; the same command goes on") from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Display:
    """Names by noises: mean of the last epoch so far, and how many seeds are in it."""

    def __init__(
        self, cells: Sequence[Cell], rows: dict[str, dict], title: str, log: Callable[[str], None]
    ) -> None:
        self._cells, self._rows, self._title, self._say = cells, rows, title, log
        self._began, self._before = time.monotonic(), len(rows)
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> "_Display":
        if self._console.is_terminal:
            self._live.start()
        self._say(f"{self._title}: {len(self._rows)} of {len(self._cells)} cells are there")
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def update(self) -> None:
        """Shows the rows as they are now."""
        done, seconds = len(self._rows), time.monotonic() - self._began
        left = seconds / (done - self._before) * (len(self._cells) - done)
        state = f"{done} of {len(self._cells)} cells, {left / 60:.0f} min left"
        if self._console.is_terminal:
            self._live.update(self._table(state), refresh=True)
        elif done % 10 == 0 or done == len(self._cells):
            self._say(state)

    def _table(self, state: str) -> Table:
        noises = list(dict.fromkeys(cell.noise for cell in self._cells))
        table = Table("", *noises, title=f"{self._title}: test accuracy in %", caption=state)
        for name in dict.fromkeys(cell.name for cell in self._cells):
            cells = []
            for noise in noises:
                all_of = [c for c in self._cells if (c.name, c.noise) == (name, noise)]
                found = [self._rows[c.key] for c in all_of if c.key in self._rows]
                accuracy = [row["test_accuracy_last"] for row in found]
                mean = f"{100 * statistics.fmean(accuracy):.1f}" if found else "-"
                cells.append(mean + ("" if len(found) == len(all_of) else f" ({len(found)})"))
            table.add_row(name, *cells)
        return table


FIGURES = (
    "test_accuracy_last",
    "test_accuracy_best",
    "validation_accuracy_last",
    "label_accuracy_before",
    "label_accuracy_after",
    "noise_rate",
    "seconds",
)
