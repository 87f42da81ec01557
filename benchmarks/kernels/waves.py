"""Runs the tasks of the suites in processes: one for each K of a suite, in waves.

The processes of a wave compile and check at the same time, then measure one after the other while
the rest wait.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import torch

from benchmarks.harness.processes import Child, ChildFailed
from benchmarks.kernels.suites import SUITES
from benchmarks.kernels.task import Task, skipped

# Time limits in seconds: until a process is ready, in addition to the time to compile; until it has
# measured, in addition to the time to measure.
_READY_LIMIT = 120
_ROWS_LIMIT = 60


class Worker:
    """The process of a task: it prepares immediately and measures on request."""

    def __init__(self, task: Task, cpus: int) -> None:
        self.task = task
        self._child = Child(task_process, task, cpus, method="spawn")
        self.stop = self._child.stop
        self._failure: str | None = None

    def wait_until_ready(self) -> None:
        """Returns after everything was compiled and checked, or has failed."""
        self._receive(_READY_LIMIT + self.task.compile_seconds)

    def measure(self) -> list[dict]:
        """The rows; one row with the reason if the process has failed."""
        rows: list[dict] = []
        if self._failure is None:
            self._child.send("measure")
            rows = self._receive(_ROWS_LIMIT + 2 * self.task.seconds)
        self.stop()
        return rows if self._failure is None else [skipped(self.task, self._failure, wrong=True)]

    def _receive(self, seconds: float) -> list[dict]:
        try:
            return self._child.receive(seconds)
        except ChildFailed as error:
            self._failure = error.reason
            self.stop()
            return []


def task_process(parent: Connection, task: Task, cpus: int) -> None:
    """The process of a task."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(cpus))
    torch.set_num_threads(task.threads)
    measure = SUITES[task.suite](task)
    parent.send([])
    parent.recv()
    parent.send(measure())


def run(
    tasks: Sequence[Task], jobs: int, facts: dict, write: Callable[[list[dict]], object]
) -> list[dict]:
    """Runs the tasks in waves; returns the rows, in the order of the tasks.

    Args:
        tasks: The tasks.
        jobs: Processes of a wave.
        facts: The environment, stored with every row.
        write: Takes all rows measured so far after each wave.
    """
    rows: list[dict] = []
    cpus = max(1, (os.cpu_count() or 1) // jobs)
    for first in range(0, len(tasks), jobs):
        begin = time.perf_counter()
        workers = [Worker(task, cpus) for task in tasks[first : first + jobs]]
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
        seconds = f"ready in {ready - begin:.0f} s, timed in {time.perf_counter() - ready:.0f} s"
        print(f"{named}: {seconds}", file=sys.stderr)
        write(rows)
    return rows
