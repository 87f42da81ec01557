"""Checks and times the entrants of a unit, in a process of its own.

A candidate that has never run may hang or fault, which ends a CUDA context: the process is then
replaced, and what it was doing is reported.
"""

from collections.abc import Callable
from functools import cached_property, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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
from benchmarks.tournament.library import Library, NotForThisBatch

_LATENCY_BANK_ROWS = 50_000
_QUEUED_STEPS = 10  # of a turn
_GRAPH_STEPS = 20  # in a graph
_REPLAYS = 5  # of a graph in a turn

# Seconds: until a process has the inputs of a unit; for a check, or in addition to a timing.
_READY_LIMIT = 60
_ANSWER_LIMIT = 10


class Referee:
    """Measures units in a process, and starts another one if that fails."""

    def __init__(self, library: Path, seconds: float) -> None:
        self._arguments, self._seconds = (library, seconds), seconds
        self._child: Child | None = None
        self._unit: Unit | None = None  # whose inputs the process has
        self._broken: dict[str, str] = {}  # regime that hung or ended a process -> the reason

    def rows(self, unit: Unit) -> list[dict]:
        """One row for each entrant, and of a timing one for the copy."""
        try:
            self._prepare(unit)
            if unit.stage != "correctness":
                limit = _ANSWER_LIMIT + 2 * self._seconds * (len(unit.entrants) + 1)
                return self._ask(unit, None, limit)
        except ChildFailed as error:
            self.stop()
            return [unit.failed(entrant, error.reason) for entrant in unit.entrants]
        return [self._checked(unit, entrant) for entrant in unit.entrants]

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
        self._child = self._unit = None

    def _checked(self, unit: Unit, entrant: Entrant) -> dict:
        regime = entrant.candidate.regime
        if regime in self._broken:
            return unit.failed(entrant, f"not run again: {self._broken[regime]}")
        try:
            return self._ask(unit, entrant, _ANSWER_LIMIT)
        except ChildFailed as error:
            self._broken[regime] = error.reason
            self.stop()
            return unit.failed(entrant, error.reason)

    def _prepare(self, unit: Unit) -> None:
        """Gives a process the inputs of the unit; raises a ChildFailed if they do not fit."""
        self._child = self._child or Child(serve, *self._arguments, method="spawn")
        if self._unit != unit:
            self._unit = None
            self._exchange(unit, _READY_LIMIT)
            self._unit = unit

    def _ask(self, unit: Unit, message: Entrant | None, limit: float) -> Any:
        self._prepare(unit)
        return self._exchange(message, limit)

    def _exchange(self, message: Unit | Entrant | None, limit: float) -> Any:
        try:
            self._child.send(message)
            return self._child.receive(limit)
        except BrokenPipeError as error:
            raise ChildFailed("a process of the benchmark died") from error


def serve(parent: Connection, library: Path, seconds: float) -> None:
    """The process: takes a unit, then entrants to check, or None to time all of them."""
    compiled = Library(library)
    arena = None
    while True:
        message = parent.recv()
        if isinstance(message, Unit):
            arena = None  # frees its memory
            arena = Arena(message, compiled)
            parent.send(None)
        else:
            parent.send(arena.timed(seconds) if message is None else arena.checked(message))


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

    def checked(self, entrant: Entrant) -> dict:
        """The row of correctness.

        A failure of the device ends this process, so it is no row.
        """
        try:
            self._check(entrant)
        except NotForThisBatch as error:
            return self._unit.failed(entrant, str(error), wrong=False)
        except (AssertionError, RuntimeError) as error:
            torch.cuda.synchronize()  # raises if the context is lost
            return self._unit.failed(entrant, str(error))
        return {**self._unit.row(entrant), "wrong": False}

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
            "finish": None,
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
