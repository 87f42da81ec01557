"""Checks and times the entrants of a unit, in a process of its own.

A candidate that has never run may hang or fault, which ends a CUDA context: the process is then
replaced, and what it was doing is reported.
"""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from alr_fast import reference
from benchmarks.harness.averages import percentiles
from benchmarks.harness.compare import check_step
from benchmarks.harness.processes import Child, ChildFailed
from benchmarks.harness.timing import capture, device_turn, queue_time, take_turns
from benchmarks.kernels.bandwidth import BANK_BYTES
from benchmarks.kernels.problem import Problem
from benchmarks.kernels.task import first_columns
from benchmarks.tournament.candidates import COPY, LATENCY, SUITE, Entrant, Unit
from benchmarks.tournament.library import Library

_LATENCY_BANK_ROWS = 50_000
_QUEUED_STEPS = 10  # of a turn
_GRAPH_STEPS = 20  # in a graph
_REPLAYS = 5  # of a graph in a turn

# Seconds: for an answer of the process, in addition to the time to measure.
_ANSWER_LIMIT = 40


class Referee:
    """Measures units in a process, and starts another one if that fails."""

    def __init__(self, library: Path, seconds: float) -> None:
        self._arguments, self._seconds = (library, seconds), seconds
        self._child: Child | None = None

    def rows(self, unit: Unit) -> list[dict]:
        """One row for each entrant, and of a timing one for the copy."""
        rows: list[dict] = []
        while left := unit.entrants[len(rows) :]:
            try:
                self._child = self._child or Child(serve, *self._arguments, method="spawn")
                self._child.send(Unit(unit.stage, unit.case, left))
                if unit.stage != "correctness":
                    limit = _ANSWER_LIMIT + 2 * self._seconds * (len(left) + 1)
                    return self._child.receive(limit)
                for _ in left:
                    rows += self._child.receive(_ANSWER_LIMIT)
            except (ChildFailed, BrokenPipeError) as error:
                self.stop()
                why = getattr(error, "reason", str(error))
                if unit.stage != "correctness":
                    return [unit.failed(entrant, why) for entrant in left]
                rows.append(unit.failed(unit.entrants[len(rows)], why))
        return rows

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
        self._child = None


def serve(parent: Connection, library: Path, seconds: float) -> None:
    """The process: answers each unit with lists of rows."""
    compiled = Library(library)
    while True:
        unit = parent.recv()
        arena = Arena(unit, compiled)
        if unit.stage == "correctness":
            for row in arena.checked():
                parent.send([row])
        else:
            parent.send(arena.timed(seconds))


class Arena:
    """The inputs of a unit."""

    def __init__(self, unit: Unit, library: Library, device: str = "cuda") -> None:
        self._unit, self._library = unit, library
        case = unit.case
        rows = _LATENCY_BANK_ROWS
        if case not in LATENCY:
            rows = max(2 * case.batch, BANK_BYTES // (case.classes * case.stored.itemsize))
        self.problem = Problem(case, device, rows)
        self._grads = [torch.empty_like(logits) for logits in self.problem.logits]

    def checked(self) -> Iterator[dict]:
        """The rows of correctness.

        A failure of the device ends this process, so it is no row.
        """
        for entrant in self._unit.entrants:
            try:
                self._check(entrant)
            except (AssertionError, RuntimeError) as error:
                torch.cuda.synchronize()  # raises if the context is lost
                yield self._unit.failed(entrant, str(error))
            else:
                yield {**self._unit.row(entrant), "wrong": False}

    def timed(self, seconds: float) -> list[dict]:
        """The rows of a timing: ``seconds`` for each entrant."""
        in_graph = self._unit.case in LATENCY
        turns: dict[str, Callable[[], float]] = {}
        for entrant in self._unit.entrants:
            step = self._step(entrant)
            turns[str(entrant)] = _graph_turn(step) if in_graph else _turn(step)
        if not in_graph:
            turns["copy"] = _turn(partial(self.problem.step, "copy"))
        measured = take_turns(turns, seconds * len(turns), at_least=3, shuffle=True)
        calls = _REPLAYS * _GRAPH_STEPS if in_graph else _QUEUED_STEPS
        found = {
            name: {
                **percentiles(times),
                "calls": len(times) * calls,
                "index_pattern": self.problem.index_pattern,
            }
            for name, times in measured.items()
        }
        if in_graph:
            return [self._unit.row(e) | found[str(e)] for e in self._unit.entrants]
        copy = found["copy"]["p50_us"]
        for row in found.values():
            row["gigabytes_per_second"] = self._unit.case.ideal_bytes / row["p50_us"] / 1e3
            row["share_of_copy"] = copy / row["p50_us"]
        first = {
            **first_columns(SUITE, self._unit.case, "copy"),
            "stage": self._unit.stage,
            "arithmetic": None,
            "any_index": False,
        }
        rows = [self._unit.row(entrant) | found[str(entrant)] for entrant in self._unit.entrants]
        return [*rows, first | found["copy"]]

    def _step(self, entrant: Entrant) -> Callable[[], None]:
        """Calls the entrant with other inputs each time."""
        problem, call = self.problem, self._library.step(entrant, self.problem.bank)

        def step() -> None:
            n = problem.calls
            problem.calls += 1
            inputs = n % len(problem.logits)
            index = problem.index[n % len(problem.index)]
            call(problem.logits[inputs], index, self._grads[inputs])

        return step

    @cached_property
    def _expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, gradient and bank rows of the first inputs, in float64."""
        problem = self.problem
        logits, rows = problem.logits[0].double(), problem.bank[problem.index[0]].double()
        order = torch.arange(len(rows), device=rows.device)
        return *problem.loss_and_grad(reference.alr_loss, logits, rows, order), rows

    @cached_property
    def _bank_before(self) -> Tensor:
        return self.problem.bank.clone()

    def _check(self, entrant: Entrant) -> None:
        """Raises an AssertionError if results are wrong; restores the bank."""
        problem, before = self.problem, self._bank_before
        logits, index, grad = problem.logits[0], problem.index[0], self._grads[0].fill_(torch.nan)
        call = self._library.step(entrant, problem.bank)
        try:
            call(logits, index, grad)
            call(logits, index, grad)  # what the first one leaves behind must not disturb it
            problem.bank[index] = before[index]
            call(logits, index, grad)
            rows = problem.bank[index]
            problem.bank[index] = before[index]
            if not torch.equal(problem.bank, before):
                raise AssertionError("changes rows of the bank outside the batch")
        finally:
            problem.bank.copy_(before)
        if entrant.arithmetic == COPY:
            if not (torch.equal(grad, logits) and torch.equal(rows, before[index])):
                raise AssertionError("is no copy of logits and bank rows")
            return
        if call.grad_scale.item() != 1:
            raise AssertionError(f"leaves a factor of {call.grad_scale.item()} to the gradient")
        check_step(str(entrant), (call.loss[0], grad, rows), self._expected)


def _turn(step: Callable[[], object]) -> Callable[[], float]:
    step()
    return partial(device_turn, step, _QUEUED_STEPS, queue_time(step, _QUEUED_STEPS))


def _graph_turn(step: Callable[[], object]) -> Callable[[], float]:
    replay = capture(step, _GRAPH_STEPS)
    return lambda: device_turn(replay, _REPLAYS, 100.0) / _GRAPH_STEPS
