"""Times the fused kernels on a GPU beside eager, compiled and Triton code, a copy and a graph.

    python -m benchmarks.kernels

Three suites, in float32 if not said otherwise:

latency
    B x K as in training with noisy labels: microseconds of forward + backward, called one after the
    other without waiting (with the host's share) and inside a CUDA graph; launches; the time of the
    forward kernel alone at B = 256; an autograd graph with a single native operation beside them.
bandwidth
    B * K of at least 1e7 over a bank of 1 GB: device time a step against a copy that reads two and
    writes two tensors of the same size. Steps are queued ahead of the device; what makes the host
    wait (the masks of the reference) is timed with that wait.
pinned
    The bank in pinned host memory, against copies of as many bytes over the host's link.

Loss, gradient and bank of every variant are compared with the float64 reference before any timing,
inputs rotate over three times the L2, and the variants take turns. Compiled are the reference in
three modes and, in the default mode, the operation without masks: for each K of the bandwidth
suite, and for each K at B = 256 of the latency suite. Every K of a suite has a process of its own:
a wave of them compiles and checks at the same time, then they time one after the other, while the
rest wait. Compilation that has not begun after --compile-seconds is left out; its row says so.

Rows go to benchmarks/results/<gpu>-<date>-<commit>.json after each wave; no file is overwritten.
`python -m benchmarks.report` makes the tables.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness.environment import environment
from benchmarks.harness.results import FOLDER, ResultFile
from benchmarks.kernels.suites import SUITES, Task, skipped, tasks

# A process that does not answer for so long is stopped, in seconds: until it is ready, on top of
# the time to compile; until it has timed, on top of the time to measure.
_READY_LIMIT = 120
_ROWS_LIMIT = 60


class Worker:
    """The process of a task: prepares at once, times when told to."""

    def __init__(self, task: Task, cpus: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.task = task
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, task, cpus))
        self._process.start()
        theirs.close()  # so that the end of the process shows
        self._failure: str | None = None

    def wait_until_ready(self) -> None:
        """Returns when everything is compiled and checked, or has failed."""
        self._receive(_READY_LIMIT + self.task.compile_seconds)

    def measure(self) -> list[dict]:
        """The rows; one that says why, if the process has failed."""
        rows = None
        if self._failure is None:
            self._connection.send("go")
            rows = self._receive(_ROWS_LIMIT + 2 * self.task.seconds)
        self.stop()
        return [skipped(self.task, self._failure, wrong=True)] if rows is None else rows

    def stop(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self, seconds: float) -> list[dict] | None:
        try:
            if not self._connection.poll(seconds):
                self._failure = f"no answer within {seconds:.0f} seconds"
                self._process.kill()
                return None
            kind, content = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(timeout=10)
            self._failure = f"the process ended with exit status {self._process.exitcode}"
            return None
        if kind == "failed":
            self._failure = content
            return None
        return content


def _serve(connection: Connection, task: Task, cpus: int) -> None:
    """What the process does."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(cpus))
    torch.set_num_threads(task.threads)
    try:
        measure = SUITES[task.suite](task)
        connection.send(("ready", None))
        connection.recv()
        connection.send(("rows", measure()))
    except EOFError:
        pass  # the parent is gone
    except Exception as error:
        connection.send(("failed", reason(error)))


def reason(error: Exception) -> str:
    """The error in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def run(todo: Sequence[Task], jobs: int, file: ResultFile | None, facts: dict) -> list[dict]:
    """Runs the tasks in waves of `jobs`.

    Args:
        file: takes the rows so far after each wave.
        facts: the environment, stored with every row.

    Returns:
        The rows, in the order of the tasks.
    """
    rows: list[dict] = []
    for first in range(0, len(todo), jobs):
        begin = time.perf_counter()
        cpus = max(1, (os.cpu_count() or 1) // jobs)
        workers = [Worker(task, cpus) for task in todo[first : first + jobs]]
        try:
            for worker in workers:
                worker.wait_until_ready()
            ready = time.perf_counter()
            for worker in workers:
                rows += [{**row, "environment": facts} for row in worker.measure()]
        finally:
            for worker in workers:
                worker.stop()
        named = ", ".join(str(worker.task) for worker in workers)
        print(
            f"{named}: ready in {ready - begin:.0f} s, timed in "
            f"{time.perf_counter() - ready:.0f} s",
            file=sys.stderr,
        )
        if file:
            file.write(rows)
    return rows


def table(rows: Sequence[dict]) -> Table:
    """The rows, shortened."""
    shown = Table(title="microseconds a step")
    for name in ("suite", "B", "K", "variant", "mode"):
        shown.add_column(name)
    for name in ("p20", "p50", "p80", "launches", "GB/s", "of copy"):
        shown.add_column(name, justify="right")
    for row in rows:
        cells = [row["suite"], str(row["batch"]), str(row["classes"]), row["variant"]]
        if "skipped" in row:
            shown.add_row(*cells, row["skipped"])
            continue
        cells += [row.get("mode", ""), *(f"{row[f'{name}_us']:.1f}" for name in _PERCENTILES)]
        cells.append(str(row.get("launches") or ""))
        share = row.get("share_of_copy")
        cells.append(f"{row['gigabytes_per_second']:.0f}" if "gigabytes_per_second" in row else "")
        cells.append(f"{share:.0%}" if share else "")
        shown.add_row(*cells)
    return shown


_PERCENTILES = ("p20", "p50", "p80")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit status: 1 if a variant was wrong or a process failed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suite", default=",".join(SUITES), help="which suites, with commas (default %(default)s)"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU (default 2)")
    parser.add_argument(
        "--seconds", type=float, default=4, help="time to measure each K of a suite (default 4)"
    )
    parser.add_argument(
        "--compile-seconds",
        type=float,
        default=30,
        help="no compilation begins in a process that is so old (default 30)",
    )
    parser.add_argument("--jobs", type=int, default=4, help="processes at a time (default 4)")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the command")
    parser.add_argument(
        "--results-dir",
        type=Path,
        help=f"where rows go (default {FOLDER.parent.name}/{FOLDER.name}; nowhere with --tiny)",
    )
    arguments = parser.parse_args(argv)
    suites = arguments.suite.split(",")
    if unknown := [name for name in suites if name not in SUITES]:
        parser.error(f"unknown suite {unknown[0]!r}: choose from {', '.join(SUITES)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU was found: pass --device cpu to time what runs on a CPU")
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    torch.set_num_threads(arguments.threads)
    todo = [
        task
        for suite in suites
        for task in tasks(
            suite,
            device=arguments.device,
            tiny=arguments.tiny,
            seconds=arguments.seconds,
            compile_seconds=arguments.compile_seconds,
            threads=arguments.threads,
        )
    ]
    facts = environment(arguments.device)
    folder = arguments.results_dir or (None if arguments.tiny else FOLDER)
    file = ResultFile(folder, facts) if folder else None
    rows = run(todo, arguments.jobs, file, facts)
    # Columns are cut where the output is no terminal, whose width is unknown.
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    if file:
        print(f"rows in {file.path}")
    return int(any(row.get("wrong") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
